"""Files for trainers: what stands in them, and each tried with TRL's own trainer, which takes it as it is."""

import json
import math

import numpy as np
import pytest

from bonlib.estimates import best_of_n_weights
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods.bonbon import Bonbon, bonbon_target
from bonlib.records import exports
from bonlib.records.reading import read
from bonlib.records.writing import export

N = 4


@pytest.fixture(scope="module")
def table():
    """Rows of six prompts with eight draws each, and of one with three."""
    rng = np.random.default_rng(0)
    counts = [8] * 6 + [3]
    return [
        {"prompt": f"ask {prompt}", "response": f" say {prompt}{draw}", "reward": round(rng.normal(), 3)}
        for prompt, count in enumerate(counts)
        for draw in range(count)
    ]


def records_of(tmp_path, table, chat=False):
    file = tmp_path / "rows.jsonl"
    if chat:
        system = {"role": "system", "content": "be brief"}
        table = [{**row, "prompt": [system, {"role": "user", "content": row["prompt"]}]} for row in table]
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    return read(file)


@pytest.fixture
def records(tmp_path, table):
    return records_of(tmp_path, table)


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def warned(records, kind, path, **options):
    with pytest.warns(UserWarning, match="1 of 7 prompts have fewer than 4 draws: left out"):
        return export(records, kind, path, **options)


def test_best_of_n_for_sft(tmp_path, records):
    path = tmp_path / "sft.jsonl"
    assert warned(records, "sft", path, n=N) == 12
    rows = written(path)
    rewards = records.reward[:48].reshape(6, 8)
    best = records.responses[:48].reshape(6, 8)[np.arange(6)[:, None], best_of_n(rewards, N)]
    assert [row["completion"] for row in rows] == best.ravel().tolist()
    assert [row["prompt"] for row in rows] == np.repeat(records.prompts[:6], 2).tolist()
    assert rows[0].keys() == {"prompt", "completion"}


def test_weights_of_best_of_n_for_sft(tmp_path, records):
    path = tmp_path / "sft.jsonl"
    warned(records, "sft", path, n=N, weights=True)
    chances = best_of_n_weights(records.reward[:48].reshape(6, 8), N)
    assert sum(row["weight"] for row in written(path)) == pytest.approx(6)
    found = {(row["prompt"], row["completion"]): row["weight"] for row in written(path)}
    for at, chance in enumerate(chances.ravel()):
        said = records.prompts[records.prompt[at]], records.responses[at]
        assert found.get(said, 0.0) == pytest.approx(chance)


def test_rows_drawn_by_the_weights_of_best_of_n(tmp_path, records):
    path = tmp_path / "sft.jsonl"
    count = 20_000
    assert warned(records, "sft", path, n=N, resample=count, seed=1) == 6 * count
    texts, times = np.unique([row["completion"] for row in written(path)], return_counts=True)
    chances = dict(
        zip(records.responses[:48], best_of_n_weights(records.reward[:48].reshape(6, 8), N).ravel(), strict=True)
    )
    for text, came in zip(texts, times, strict=True):
        assert came == pytest.approx(chances[text] * count, abs=1.01), "evenly spaced: off by one at most"
    few, again, other = (tmp_path / name for name in ("1.jsonl", "2.jsonl", "3.jsonl"))
    for file, seed in ((few, 0), (again, 0), (other, 2)):
        warned(records, "sft", file, n=N, resample=2, seed=seed)
    assert few.read_text() == again.read_text() != other.read_text()


def test_pairs_for_dpo(tmp_path, records, table):
    path = tmp_path / "dpo.jsonl"
    assert warned(records, "dpo", path, n=N, pairs=3) == 18
    reward = {(row["prompt"], row["response"]): row["reward"] for row in table}
    for row in written(path):
        scores = reward[row["prompt"], row["chosen"]], reward[row["prompt"], row["rejected"]]
        assert (row["score_chosen"], row["score_rejected"]) == scores
        assert scores[0] > scores[1]
    assert read(path).taken["reward"] == "score_chosen, score_rejected"
    tied = records_of(tmp_path, [{**row, "reward": 1.0} for row in table[:16]])
    with pytest.raises(ValueError, match="has no pair with different scores"):
        export(tied, "dpo", path)
    tied = records_of(tmp_path, [{**row, "reward": float(at == 5)} for at, row in enumerate(table[:16])])
    assert export(tied, "dpo", path, n=8, pairs=28) == 7


def test_pairs_with_weights_are_refused(records):
    method = Bonbon(3, picks="weights")
    with pytest.raises(ValueError, match="pairs have weights or targets"):
        exports._pairs(records, 3, lambda rewards: method.examples(rewards, seed=0))


def test_best_and_worst_for_bonbon(tmp_path, records):
    path = tmp_path / "bonbon.jsonl"
    assert warned(records, "bonbon", path, n=N) == 12
    for row, group in zip(written(path), records.reward[:48].reshape(12, 4), strict=True):
        assert (row["score_chosen"], row["score_rejected"]) == (group.max(), group.min())
        assert row["target"] == bonbon_target(4) == pytest.approx(5.5)
        assert row["beta"] == pytest.approx(1 / 11)


def test_log_cdf_of_the_other_draws_as_reward(tmp_path, records):
    path = tmp_path / "cdf.jsonl"
    assert export(records, "log-cdf", path) == 51
    log_cdf = np.array([row["reward"] for row in written(path)])
    for rows in (slice(0, 8), slice(48, 51)):
        assert log_cdf[rows].mean() == pytest.approx(-1), "as E log U is, whatever the number of draws"
        assert (np.argsort(log_cdf[rows]) == np.argsort(records.reward[rows])).all()
    assert log_cdf[:8].max() == pytest.approx(-1 / 8), "E log of the largest of 8 uniform numbers"
    assert log_cdf[:8].min() == pytest.approx(-sum(1 / k for k in range(1, 9)))


def test_scored_rows_and_lists(tmp_path, records):
    rows, lists = tmp_path / "rows.csv", tmp_path / "lists.parquet"
    assert export(records, "scored", rows) == 51
    assert export(records, "scored-lists", lists) == 7
    for path in (rows, lists):
        again = read(path)
        assert again.prompts.tolist() == records.prompts.tolist()
        assert again.responses.tolist() == records.responses.tolist()
        assert again.reward.tolist() == records.reward.tolist()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_every_kind_of_file_reads_as_it_was(tmp_path, name):
    odd = 'a "quoted", \u2028 text\r\nof two lines\t'
    records = records_of(tmp_path, [{"prompt": "p", "response": odd, "reward": 0.1 + 0.2}])
    export(records, "scored", tmp_path / f"new-{name}")
    again = read(tmp_path / f"new-{name}")
    assert (again.responses[0], again.reward[0]) == (odd, 0.1 + 0.2)


def test_conversations_stay_conversations(tmp_path, table, capsys):
    records = records_of(tmp_path, table, chat=True)
    export(records, "dpo", "-", n=2, pairs=1)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert [message["role"] for message in row["chosen"]] == ["assistant"]
    export(records, "scored-lists", tmp_path / "lists.parquet")
    again = read(tmp_path / "lists.parquet")
    assert again.messages == records.messages
    assert again.responses.tolist() == records.responses.tolist()
    with pytest.raises(ValueError, match=r"prompt has .*, which CSV cannot hold: write .jsonl or .parquet"):
        export(records, "scored", tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("foo", {}, "kind is 'foo'; it must be one of sft, dpo"),
        ("sft", {}, "n is missing; 'sft' needs it: say n=…"),
        ("bonbon", {"n": 4, "pairs": 3}, "pairs is 3; 'bonbon' takes n: leave it out"),
        ("scored", {"n": 4}, "n is 4; 'scored' takes no option: leave it out"),
        ("sft", {"n": 9}, "n is 9; .* has at most 8 draws a prompt: lower it"),
        ("sft", {"n": 0}, "n is 0; the number of draws must be a whole number of at least 1"),
        ("sft", {"n": 3, "weights": True, "resample": 2}, "weights and resample are both given"),
        ("sft", {"n": 3, "resample": 0}, "resample is 0; rows a prompt, it must be"),
        ("dpo", {"n": 3, "pairs": 4}, "pairs is 4; of 3 generations it must be a whole number from 1 to 3"),
        ("bonbon", {"n": 1}, "n is 1; the number of draws must be a whole number of at least 2"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_file_is_touched(tmp_path, records, kind, options, message):
    path = tmp_path / "out.jsonl"
    path.write_text("as it was")
    with pytest.raises(ValueError, match=message):
        export(records, kind, path, **options)
    assert path.read_text() == "as it was"


def test_a_file_of_no_known_kind_and_records_without_a_score(tmp_path):
    records = records_of(tmp_path, [{"prompt": "p", "response": "r"}])
    with pytest.raises(ValueError, match=r"out.txt'; it must end in .jsonl, .json, .csv, .parquet, or be '-'"):
        export(records, "scored", tmp_path / "out.txt")
    with pytest.raises(ValueError, match="has no score"):
        export(records, "log-cdf", tmp_path / "out.jsonl")
    assert export(records, "scored-lists", tmp_path / "out.jsonl") == 1


# With TRL's own trainers.

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


@pytest.fixture
def trained(tmp_path, language_model_folder):
    """Train a tiny model by one of TRL's trainers on a file, and return the losses of its steps."""
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    def train(name, path, **options):
        data = datasets.load_dataset(
            path.suffix[1:].removesuffix("l"), data_files=str(path), split="train", cache_dir=tmp_path / "cache"
        )
        tokenizer = AutoTokenizer.from_pretrained(language_model_folder)
        tokenizer.chat_template = TEMPLATE
        classifies = name == "RewardTrainer"
        kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        model = kind.from_pretrained(language_model_folder, **({"num_labels": 1} if classifies else {}))
        usual = {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 48, "learning_rate": 1e-3}
        usual |= {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False}
        config = getattr(trl, name.replace("Trainer", "Config"))(tmp_path / "run", disable_tqdm=True, **usual | options)
        trainer = getattr(trl, name)(model, args=config, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("kind", "options", "name", "trainer"),
    [
        ("sft", {"n": N}, "rows.jsonl", "SFTTrainer"),
        ("sft", {"n": N, "resample": 2}, "rows.parquet", "SFTTrainer"),
        ("sft", {"n": N, "weights": True}, "rows.json", "SFTTrainer"),
        ("dpo", {"n": N, "pairs": 3}, "rows.jsonl", "DPOTrainer"),
        ("dpo", {"n": N, "pairs": 3}, "rows.parquet", "RewardTrainer"),
        ("bonbon", {"n": N}, "rows.parquet", "DPOTrainer"),
        ("log-cdf", {}, "rows.jsonl", "SFTTrainer"),
        ("scored", {}, "rows.jsonl", "SFTTrainer"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 7 prompts have fewer")
def test_trl_takes_it_as_it_is(tmp_path, table, trained, kind, options, name, trainer, chat):
    path = tmp_path / name
    export(records_of(tmp_path, table, chat), kind, path, **options)
    losses = trained(trainer, path)
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_trl_takes_the_target_of_bonbon_where_responses_are_of_one_length(
    tmp_path, table, trained, language_model_folder
):
    from transformers import AutoTokenizer

    path = tmp_path / "bonbon.jsonl"
    warned(records_of(tmp_path, table), "bonbon", path, n=N)
    tokenizer = AutoTokenizer.from_pretrained(language_model_folder)
    said = [row[which] for row in written(path) for which in ("chosen", "rejected")]
    (length,) = {len(tokenizer(text)["input_ids"]) + 1 for text in said}  # and the end token
    target = written(path)[0]["target"]
    losses = trained("DPOTrainer", path, loss_type="ipo", beta=length / (2 * target), learning_rate=0.0)
    assert losses[0] * length**2 == pytest.approx(target**2, rel=1e-4), "the square at the reference"
    assert math.isclose(losses[0], losses[1])

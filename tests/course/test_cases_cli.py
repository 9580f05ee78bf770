"""Small inputs that failed, of the kinds that users of such tools report: data files and the command line."""

import json

import click
import numpy as np
import pytest
from corpus import TEXTS

from bonlib.__main__ import COMMANDS, commands, main
from bonlib.course.making import pretrain
from bonlib.course.making.adapters import write_summaries
from bonlib.course.making.documents import Document, load_reddit, load_scitldr, rouge
from bonlib.course.making.reviews import Review, load_reviews
from bonlib.course.runner import NOTEBOOKS, plan
from bonlib.draws.samplers import TransformersSampler

GOOD = {"source": ["One.", "Two."], "target": ["short"]}


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def loaded(*arguments, **options):
        raise AssertionError("a model was loaded")

    for module in ("setting", "summarisation"):
        monkeypatch.setattr(f"bonlib.course.experiments.{module}.load_language_model", loaded)
    monkeypatch.setattr("bonlib.course.runner._execute", loaded)


def write(path, *lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


# -- files of JSON lines ------------------------------------------------------------------------------------------


def test_summaries_that_were_written_are_read_by_the_same_reader(tmp_path, language_model):
    file = write(tmp_path / "summaries.jsonl", json.dumps(["a\u2028b"], ensure_ascii=False), "", '["half')
    sampler = TransformersSampler(language_model)
    assert write_summaries(sampler, ["only one"], (1.0,), file, seed=0) == [["a\u2028b"]]
    write(file, '{"a": 1}', "")
    with pytest.raises(ValueError, match=r"summaries\.jsonl, line 1 is .*one JSON array"):
        write_summaries(sampler, ["only one"], (1.0,), file, seed=0)


# -- texts and labels ---------------------------------------------------------------------------------------------


def test_a_string_in_place_of_a_list_is_one_item(tmp_path):
    write(tmp_path / "train.jsonl", json.dumps({"source": "We study A.", "target": "A works."}))
    assert load_scitldr("train", str(tmp_path)) == (Document("We study A.", ("A works.",)),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "source is None"),
        ({"source": 3}, "source is 3"),
        ({"source": []}, "source is "),
        ({"source": ["", " "]}, "source is "),
        ({"source": ["One.", None]}, r"source\[1\] is None"),
        ({"source": ["One.", ["Two."]]}, r"source\[1\] is "),
        ({"target": ""}, "target is ''"),
        ({"target": ["short", 1.5]}, r"target\[1\] is 1.5"),
        ({"target": ["\ud83d"]}, r"target\[0\] "),
    ],
)
def test_what_is_no_text_is_named_with_file_and_line(tmp_path, change, message):
    write(tmp_path / "test.jsonl", json.dumps(GOOD), "", json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=r"test\.jsonl, line 3: " + message):
        load_scitldr("test", str(tmp_path))


def test_a_missing_column_file_or_row_is_named(tmp_path):
    write(tmp_path / "test.jsonl", '{"source": ["One."], "summary": "x"}')
    with pytest.raises(ValueError, match="line 1 has no 'target'; it has 'source', 'summary'"):
        load_scitldr("test", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"dev\.jsonl"):
        load_scitldr("validation", str(tmp_path))
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(ValueError, match="no rows"):
        load_scitldr("train", str(tmp_path))


@pytest.mark.parametrize("label", [0.9, -1, 2, True, "1", None, [1], "positive", float("nan")])
def test_a_label_is_0_or_1(tmp_path, label):
    rows = [{"text": "a good film", "label": 1}, {"text": "a bad film", "label": label}]
    write(tmp_path / "train.jsonl", *map(json.dumps, rows))
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: label is "):
        load_reviews("train", str(tmp_path))
    with pytest.raises(ValueError, match="label is "):
        Review("a bad film", label)


@pytest.mark.parametrize("text", ["", "  ", "<br />", None, 3, float("nan"), ["a", "list"]])
def test_a_review_has_a_text(tmp_path, text):
    write(tmp_path / "test.jsonl", json.dumps({"text": text, "label": 1}))
    with pytest.raises(ValueError, match="text is "):
        load_reviews("heldout", str(tmp_path))


def test_good_reviews_are_read_from_a_folder(tmp_path):
    rows = [{"text": "a good<br />film\u2028again", "label": 1}, {"text": "a bad film", "label": 0.0}]
    write(tmp_path / "train.jsonl", *(json.dumps(row, ensure_ascii=False) for row in rows))
    assert set(load_reviews("train", str(tmp_path))) == {Review("a good film again", 1), Review("a bad film", 0)}


def test_a_post_without_a_text_is_named(tmp_path):
    row = {"subreddit": "AskReddit", "title": "", "post": "text", "summary": "short"}
    write(tmp_path / "train.jsonl", json.dumps(row), json.dumps(row | {"post": None}))
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: post is None"):
        load_reddit("train", relationships=False, source=str(tmp_path))


def test_one_string_is_no_list_of_summaries():
    with pytest.raises(ValueError, match=r"summaries is 'A works\.'; it must be a tuple"):
        Document("We study A.", "A works.")
    for summaries, references in (("a b", [["a b"]]), (["a b"], "a b"), (["a b"], ["a b"])):
        with pytest.raises(ValueError, match="put it into brackets"):
            rouge(summaries, references)


# -- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["store", "--prune", "-1"], "--prune: prune is -1"),
        (["store", "--prune", "nan"], "--prune: prune is 'nan'"),
        (["store", "--prune", "inf"], "--prune: prune is 'inf'"),
        (["store", "--prune", "all"], "--prune: prune is 'all'"),
        (["store", "--root", "no-such-store", "--prune", "0"], "--root is 'no-such-store'"),
        (["train", "vbon", "--n", "4", "--set", "steps=1.5"], "--set has a value of the wrong kind: steps is 1.5"),
        (["train", "vbon", "--n", "4", "--set", "steps=abc"], "--set has a value of the wrong kind: steps is 'abc'"),
        (["train", "vbon", "--n", "4", "--set", "steps=0"], "steps is 0"),
        (["train", "vbon", "--n", "4", "--set", "steps=nan"], "steps is 'nan'"),
        (["train", "vbon", "--n", "4", "--set", "steps=True"], "steps is True"),
        (["train", "vbon", "--n", "4", "--set", "lora_rank=4.5"], "lora_rank is 4.5"),
        (["train", "vbon", "--n", "4", "--set", "learning_rate=fast"], "learning_rate is 'fast'"),
        (["train", "vbon", "--n", "4", "--set", "decay=no"], "decay is 'no'"),
        (["train", "vbon", "--n", "4", "--set", "precision=fp8"], "precision is 'fp8'"),
        (["train", "jbond", "--rate", "0.1", "--set", "regulariser=high"], "regulariser is 'high'"),
        (["train", "vbon", "--n", "4", "--set", "stepz=3"], "--set: setting 'stepz' is unknown"),
        (["train", "vbon", "--n", "4", "--set", "seed=3"], "--set: setting 'seed' is unknown"),
        (["train", "vbon", "--n", "4", "--set", "steps"], "--set is 'steps'; it must have the form name=value"),
        (["train", "vbon", "--n", "4", "--set", "steps=3", "--set", "steps=4"], "--set has 'steps' twice"),
        (["train", "vbon", "--n", "4", "--seed", "-1"], "--seed: seed is -1"),
        (["train", "vbon", "--n", "4", "--seed", "1.5"], "--seed: seed is 1.5"),
        (["train", "vbon", "--n", "4", "--seed", "one"], "--seed: seed is 'one'"),
        (["train", "vbon", "--n", "4", "--seed", str(2**32)], "--seed: seed is 4294967296"),
        (["train", "vbon", "--n", "0"], "--n: n is 0"),
        (["train", "vbon", "--n", "-3"], "--n: n is -3"),
        (["train", "vbon", "--n", "nan"], "--n: n is 'nan'"),
        (["train", "vbon", "--n", "eight"], "--n: n is 'eight'"),
        (["train", "bon-sft", "--n", "2.5"], "--n: n is 2.5"),
        (["train", "bon-sft", "--n", "1000"], "profile quick has 64: lower it"),
        (["train", "dpo", "--beta", "0"], "--beta: beta is 0"),
        (["train", "jbond", "--rate", "2"], "--rate: "),
        (["train", "bond-iterative", "--every", "0.5"], "--every: "),
        (["train", "vbon", "--n", "4", "--out", __file__], "--out: "),
        (["train", "vbon", "--n", "4", "--stepz", "3"], "--stepz"),
        (["run", "--only", "13", "-p", "n=eight"], "parameter 'n' is 'eight'; 13_your_own takes a whole number"),
        (["run", "--only", "13", "-p", "n=8.5"], "parameter 'n' is 8.5"),
        (["run", "--only", "13", "-p", "n=True"], "parameter 'n' is True"),
        (["run", "--only", "13", "-p", "model=3"], "parameter 'model' is 3; 13_your_own takes a text"),
        (["run", "--only", "02", "-p", "probs=0.3"], "parameter 'probs' is 0.3; 02_three_outcomes takes a list"),
        (["run", "--only", "02", "-p", "probs=[0.3,'x']"], "parameter 'probs' is "),
        (["run", "--only", "01", "-p", "p_best=half"], "parameter 'p_best' is 'half'"),
        (["run", "--only", "01", "-p", "p_best=1", "-p", "p_best=0"], "-p has 'p_best' twice"),
        (["site", "--build", "no-such-folder"], "--build is 'no-such-folder', without an executed notebook"),
        (["nothing"], "'nothing'"),
    ],
)
def test_wrong_usage_is_refused_at_once_in_one_line(arguments, message, capsys, nothing_is_loaded):
    assert main(arguments) == 2
    out, complaint = capsys.readouterr()
    assert message in complaint
    assert complaint.startswith("bonlib: ")
    assert len(complaint.splitlines()) == 1
    assert not out


def test_every_command_is_found_and_said_in_the_help(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert commands.get_command(click.Context(commands), name).name == name
        assert f"  {name} " in listed


def test_no_command_and_an_interruption_have_exit_codes_of_their_own(monkeypatch, capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("bonlib: Missing command. (`python -m bonlib --help`")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("bonlib.course.exercises.write_stubs", interrupt)
    assert main(["stubs"]) == 130
    assert "interrupted; what was made is kept" in capsys.readouterr().err


def test_a_folder_without_executed_notebooks_makes_no_site(tmp_path, capsys):
    (tmp_path / "README.md").write_text("nothing was run here")
    assert main(["site", "--build", str(tmp_path), "--out", str(tmp_path / "site")]) == 2
    assert "without an executed notebook" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_values_of_a_notebook_own_kind_are_taken():
    for only, parameters in (("13", {"n": 4, "model": "x"}), ("01", {"p_best": 1}), ("02", {"probs": [0.5, 0.5]})):
        assert [path.parent for path in plan([only], parameters)] == [NOTEBOOKS]


def test_explain_prints_what_was_proved(language_model_folder, classifier_folder, capsys):
    for arguments in ([language_model_folder], [classifier_folder, "--classifier"]):
        assert main(["explain", *map(str, arguments)]) == 0
        assert "GPT2" in capsys.readouterr().out
    assert main(["explain", "no-such-model"]) == 2
    assert "model 'no-such-model' is neither" in capsys.readouterr().err


# -- measuring a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [2, 3, 64])
def test_perplexity_in_a_short_context(tmp_path, monkeypatch, context):
    reviews = tuple(Review(f"{text} and again " * 9, place % 2) for place, text in enumerate(TEXTS[:3]))
    monkeypatch.setattr(pretrain, "load_reviews", lambda split, *source: reviews)
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    tokenizer = pretrain.train_tokenizer(TEXTS, vocab_size=300, context=context)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        pad_token_id=1, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    for kind in (GPT2LMHeadModel, GPT2ForSequenceClassification):
        kind(config).save_pretrained(tmp_path / kind.__name__)
        tokenizer.save_pretrained(tmp_path / kind.__name__)
    figures = pretrain.evaluate(tmp_path / "GPT2LMHeadModel")
    assert figures["perplexity_per_token"] == pytest.approx(300, rel=0.2)  # it knows nothing
    if context > 3:
        accuracies = pretrain.evaluate(tmp_path / "GPT2ForSequenceClassification")
        assert f"accuracy_first_{context}_tokens" in accuracies


def test_what_cannot_be_measured_is_named(language_model, tmp_path):
    for stride in (0, 48, 1.5):
        with pytest.raises(ValueError, match=f"stride is {stride}; it must be a whole number from 1 to 47"):
            pretrain.perplexity(language_model, TEXTS, stride=stride)
    with pytest.raises(ValueError, match="texts is 'one text'; it must be a list"):
        pretrain.perplexity(language_model, "one text")
    with pytest.raises(FileNotFoundError, match="without a config"):
        pretrain.evaluate(tmp_path)
    assert np.isfinite(pretrain.perplexity(language_model, TEXTS, stride=47)["perplexity_per_token"])

"""The commands for anybody's files: what each prints and writes, what a pipe takes, and what is said of bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bonlib as bon
from bonlib.__main__ import commands, main
from bonlib.draws.http import ServerError

NEW = ("draw", "score", "report", "choose", "train", "export", "compare")
SIZES = ["--count", "8", "--max-new-tokens", "6"]
DRAW = ["draw", "imdb-gpt2-tiny", "prompts.txt", *SIZES]
BREVITY = "def brevity(prompt, response):\n    return -len(response) / 10\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with prompts, a function that scores, draws, scores, and the store that they are in."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "prompts.txt").write_text("The film\nMy mother\n\n")
    (folder / "rewards.py").write_text(BREVITY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BONLIB_STORE", str(folder / "store"))
        patch.chdir(folder)
        assert main([*DRAW, "--out", "d.jsonl"]) == 0
        assert main(["score", "d.jsonl", "--by", "rewards.py:brevity", "--out", "scored.jsonl"]) == 0
    return folder


@pytest.fixture(autouse=True)
def place(made, tmp_path, monkeypatch):
    """A copy of it to work in."""
    place = shutil.copytree(made, tmp_path / "place")
    monkeypatch.setenv("BONLIB_STORE", str(place / "store"))
    monkeypatch.chdir(place)
    return place


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_draws_go_to_a_file_or_to_standard_output_and_are_made_once(place, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr("bonlib.draws.samplers.TransformersSampler.sample", None)  # nothing is drawn again
    assert main(DRAW) == 0
    out = capsys.readouterr()
    assert rows(out.out) == rows((place / "d.jsonl").read_text())
    assert "8 draws to each of 2 prompts by imdb-gpt2-tiny" in out.err
    first = rows(out.out)[0]
    assert first.keys() == {"prompt", "response", "log_prob", "length"}
    assert first["prompt"] == "The film"
    expected = bon.draw("imdb-gpt2-tiny", ["The film", "My mother"], 8, max_new_tokens=6)
    assert [row["response"] for row in rows(out.out)] == expected.texts.ravel().tolist()


def test_scores_are_added_and_remembered(place, capsys, monkeypatch):
    found = rows((place / "scored.jsonl").read_text())
    assert all(row["reward"] == -len(row["response"]) / 10 for row in found)
    assert len(found) == 16
    monkeypatch.setattr("bonlib.draws.rewards.FunctionReward.score", None)
    capsys.readouterr()
    assert (
        main(["score", "d.jsonl", "--by", "rewards.py:brevity", "--name", "brevity", "--out", "again.csv", "--json"])
        == 0
    )
    about = json.loads(capsys.readouterr().out)
    assert about == {"responses": 16, "kept_apart": 0, "mean": pytest.approx(about["mean"]), "out": "again.csv"}
    assert "brevity" in (place / "again.csv").read_text().splitlines()[0]


def test_a_report_has_a_page_tables_and_a_summary(place, capsys):
    capsys.readouterr()
    assert main(["report", "scored.jsonl", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    folder = place / "scored-report"
    assert about["page"] == "scored-report/report.html"
    assert {"report.html", "summary.json", "curve.csv", "responses.parquet"} <= {path.name for path in folder.iterdir()}
    assert main(["report", "scored.jsonl", "--out", "here"]) == 0
    assert "open here/report.html" in capsys.readouterr().out


def test_what_a_rule_keeps_is_written_and_summed_up(place, capsys):
    capsys.readouterr()
    assert main(["choose", "scored.jsonl", "--rule", "best", "--set", "n=4", "--out", "kept.jsonl", "--json"]) == 0
    about, kept = json.loads(capsys.readouterr().out), rows((place / "kept.jsonl").read_text())
    given = rows((place / "scored.jsonl").read_text())
    assert [row["reward"] for row in kept] == [max(row["reward"] for row in given[i : i + 4]) for i in (0, 4, 8, 12)]
    assert kept[0].keys() == {*given[0], "spent"}
    mean = sum(row["reward"] for row in kept) / 4
    assert about == {
        "kept": 4,
        "responses": 16,
        "spent": 16,
        "out": "kept.jsonl",
        "mean": {"reward": pytest.approx(mean)},
    }
    soft = ["choose", "scored.jsonl", "--rule", "soft", "--set", "n=8", "--set", "temperature=0.5", "--seed", "3"]
    assert main(soft) == 0
    said = capsys.readouterr()
    expected = bon.choose(bon.read("scored.jsonl"), "soft", n=8, temperature=0.5, seed=3)
    assert [row["response"] for row in rows(said.out)] == expected["response"].tolist()
    assert "2 of 16 responses, 8 to each of 2 prompts" in said.err
    assert main(["choose", "kept.jsonl", "--rule", "random", "--set", "n=2"]) == 0  # what was kept can be chosen from


@pytest.mark.parametrize("kind", ["sft", "dpo", "bonbon", "log-cdf", "scored", "scored-lists"])
def test_each_kind_is_exported(kind, capsys):
    capsys.readouterr()
    more = ["--n", "4"] if kind in ("sft", "bonbon") else []
    assert main(["export", kind, "scored.jsonl", *more]) == 0
    out = capsys.readouterr()
    assert f"{len(rows(out.out))} rows of kind {kind}" in out.err
    assert rows(out.out)[0]["prompt"] == "The film"


def test_commands_stand_in_a_pipe():
    bonlib = f"{sys.executable} -m bonlib"
    line = f"{bonlib} score d.jsonl --by rewards.py:brevity | {bonlib} export dpo - --pairs 2 | tail -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}


@pytest.mark.slow
def test_a_policy_is_trained_and_compared(place, capsys):
    own = ["train", "--model", "imdb-gpt2-tiny", "--set", "steps=2", "--set", "prompts=2", "--json"]
    assert main([*own, "bon-sft", "--n", "4", "--data", "scored.jsonl"]) == 0  # from the file alone
    offline = json.loads(capsys.readouterr().out.splitlines()[-1])
    more = [
        "--data",
        "prompts.txt",
        "--by",
        "rewards.py:brevity",
        "--count",
        "8",
        "--max-new-tokens",
        "6",
        "--out",
        "run",
    ]
    assert main([*own, "vbon", "--n", "4", *more]) == 0
    drawn = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert drawn == {"method": "vbon", "policy": "run/policy"}
    call = ["compare", "imdb-gpt2-tiny", offline["policy"], drawn["policy"], "--prompts", "prompts.txt"]
    assert main([*call, "--by", "rewards.py:brevity", *SIZES, "--json"]) == 0
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert table.keys() == {"reference", "best-of-2", offline["policy"], drawn["policy"]}
    assert table["reference"]["win_rate"] == 0.5


@pytest.mark.parametrize("name", NEW)
def test_help_has_an_example_that_can_be_parsed_and_the_exit_codes(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert "exit codes: 0 well" in said
    examples = [line.strip() for line in said.splitlines() if line.strip().startswith("bonlib ")]
    assert examples
    for example in examples:
        words = example.partition(">")[0].split()[1:]
        command = commands.get_command(None, words[0])
        Path("question.txt").touch()
        command.make_context(words[0], [*words[1:]])  # every option is one, and has a value that may be


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("draw imdb-gpt2-tiny nowhere.jsonl", "nowhere.jsonl is not there"),
        ("draw no-such-model prompts.txt", "no-such-model"),
        ("draw imdb-gpt2-tiny prompts.txt --count 0", "--count: count is 0"),
        ("draw imdb-gpt2-tiny prompts.txt --json", "--json is given and --out is '-'"),
        ("draw imdb-gpt2-tiny prompts.txt --out draws.doc", "it must end in .jsonl"),
        ("draw imdb-gpt2-tiny rows.jsonl --prompt question", "rows.jsonl has no column 'question'"),
        ("draw http://127.0.0.1:9/v1 prompts.txt --key a-b", "key is not the name of an environment variable"),
        (
            "draw imdb-gpt2-tiny prompts.txt --chat",
            "--chat is for a served model, and 'imdb-gpt2-tiny' is not the address",
        ),
        ("draw http://127.0.0.1:9/v1 prompts.txt --kind x", "kind is 'x'; it must be one of vllm"),
        ("draw http://127.0.0.1:9/v1 prompts.txt --log-probs x", "log_probs is 'x'; it must be one of model"),
        ("score d.jsonl --by rewards.py:nothing", "rewards.py has no function 'nothing'"),
        ("score d.jsonl --by nowhere.py:brevity", "nowhere.py is not there"),
        ("score d.jsonl --by broken.py:brevity", "broken.py cannot be run (ZeroDivisionError"),
        ("score d.jsonl --by rewards.py", "a file without its function: give rewards.py:FUNCTION"),
        ("score d.jsonl --by rewards.py:brevity --name prompt", "name is 'prompt', which is a column of"),
        ("score scored.jsonl --by rewards.py:brevity", "name is 'reward', which is a column of scored.jsonl already"),
        ("score d.jsonl --by rewards.py:brevity --out d.jsonl", "the file that is read: name another"),
        ("score d.jsonl --by raising.py:raises", "raises raised KeyError: 'film' at prompt 'The film'"),
        ("export sft scored.jsonl --n 2 --out scored.jsonl", "the file that is read: name another"),
        ("report scored.jsonl --out rewards.py/here", "rewards.py/here: Not a directory"),
        ("report d.jsonl", "no score"),
        ("report empty.jsonl", "empty.jsonl is empty"),
        ("report rows.jsonl --reward nothing", "rows.jsonl has no column 'nothing'"),
        ("report rows.jsonl --most 0", "--most: most is 0"),
        ("report prompts.txt --out rewards.py", "is a file: name a folder"),
        ("choose rows.jsonl --rule nothing --set n=2", "rule is 'nothing'; it must be one of random, best, soft"),
        ("choose rows.jsonl --rule best", "best lacks n; it takes n: give n=…"),
        ("choose rows.jsonl --rule best --set n=2", "n is 2; rows.jsonl has at most 1 draws a prompt: lower it"),
        ("choose rows.jsonl --rule best --set n", "--set is 'n'; it must have the form name=value"),
        ("choose rows.jsonl --rule best --set n=1 --set beta=1", "beta is no setting of best; it takes n"),
        (
            "choose rows.jsonl --rule majority --set n=1",
            "no answers for MajorityVote: name their column, as in `--answer answer`",
        ),
        (
            "choose rows.jsonl --rule speculative --set n=1 --set checkpoints=(2,)",
            "no partial for SpeculativeRejection: it chooses while a model writes, see METHODS.md",
        ),
        (
            "choose rows.jsonl --rule speculative --set n=1 --set checkpoints=2",
            "checkpoints is 2; it must hold numbers of tokens, such as (8, 16)",
        ),
        (
            "choose rows.jsonl --rule tree --set n=1 --set survivors=1 --set children=1 --set checkpoints=(2,)",
            "rule is TreeBestOfN, which cannot choose among responses that were drawn before",
        ),
        ("choose d.jsonl --rule best --set n=2", "no score"),
        ("choose rows.jsonl --rule best --set n=1 --out rows.jsonl", "the file that is read: name another"),
        ("export nothing rows.jsonl", "kind is 'nothing'; it must be one of sft"),
        ("export sft rows.jsonl", "n is missing"),
        ("train vbon --model imdb-gpt2-tiny", "--model, --data and one METHOD go together"),
        ("train vbon --n 2 --model imdb-gpt2-tiny --data prompts.txt --count 4", "--count is given without --by"),
        ("compare imdb-gpt2-tiny nowhere --prompts prompts.txt --by rewards.py:brevity", "nowhere"),
    ],
)
def test_bad_input_is_named_in_one_line_with_exit_code_2(place, line, message, capsys):
    (place / "rows.jsonl").write_text('{"prompt": "a", "response": "b", "score": 1}\n')
    (place / "empty.jsonl").write_text("")
    (place / "broken.py").write_text("1 / 0\n")
    (place / "raising.py").write_text("def raises(prompt, response):\n    return {}['film']\n")
    capsys.readouterr()
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len([each for each in said.err.splitlines() if each.startswith("bonlib: ")]) == 1
    assert said.out == ""


def test_a_server_that_fails_on_the_way_is_exit_code_1(capsys, monkeypatch):
    def refuses(*arguments):
        raise ServerError("http://127.0.0.1:9/v1/models: no server can be reached: start it")

    monkeypatch.setattr("bonlib.draws.http.Server._once", refuses)
    assert main(["draw", "http://127.0.0.1:9/v1", "prompts.txt", "--count", "2"]) == 1
    assert "no server can be reached" in capsys.readouterr().err


def test_rows_that_are_left_out_are_said(place, capsys):
    (place / "gap.jsonl").write_text((place / "scored.jsonl").read_text() + '{"prompt": "The film", "reward": 1}\n')
    assert main(["export", "scored", "gap.jsonl"]) == 0
    said = capsys.readouterr()
    assert "1 rows are left out, the first: gap.jsonl, line 17 has response None" in said.err
    assert len(rows(said.out)) == 16


def test_a_rule_says_what_it_spent_and_which_prompts_are_left_out(place, capsys):
    (place / "few.jsonl").write_text(
        (place / "scored.jsonl").read_text() + '{"prompt": "b", "response": "c", "reward": 1}\n'
    )
    capsys.readouterr()
    first = ["choose", "few.jsonl", "--rule", "stop-at", "--set", "n=4", "--set", "threshold=-99"]
    assert main([*first, "--out", "kept.jsonl"]) == 0
    said = capsys.readouterr()
    assert said.err == "1 of 3 prompts have fewer than 4 draws: left out\n"
    assert said.out.splitlines()[-1] == "spent: 1 draws on average, 4 at most"
    assert main(["export", "sft", "few.jsonl", "--n", "4", "--out", "best.jsonl"]) == 0
    assert capsys.readouterr().err == "1 of 3 prompts have fewer than 4 draws: left out\n"


@pytest.mark.parametrize("rule", ["mbr", "wasserstein"])
def test_distances_are_those_of_the_words(place, rule, capsys):
    assert main(f"choose scored.jsonl --rule {rule} --set n=4 --set beta=0.5 --out kept.jsonl".split()) == 0
    assert len(rows((place / "kept.jsonl").read_text())) == 4

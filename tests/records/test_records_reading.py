"""Tables in every kind of file, bad rows by name, and what is no table at all."""

import gzip
import io
import json
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from bonlib.records.reading import read, read_prompts

ROWS = [
    {"prompt": "a", "response": "a1", "reward": 1.0, "log_prob": -1.0},
    {"prompt": "b", "response": "b1", "reward": 0.5, "log_prob": -2.0},
    {"prompt": "a", "response": "a2\u2028over two lines\nor three", "reward": -2.0, "log_prob": -3.0},
    {"prompt": "b", "response": "", "reward": 0.0, "log_prob": -4.0},
]
WIDE = [
    {"prompt": "a", "responses": ["a1", "a2"], "rewards": [1, 2]},
    {"prompt": "b", "responses": ["b1"], "rewards": [3.5]},
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def told(error):
    """The message of an error, after a check that it is one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def frame():
    return pd.DataFrame(ROWS)


WRITERS = {
    "rows.jsonl": lambda path, frame: write(path, b"\xef\xbb\xbf\n" + lines(ROWS) + b"\n  \n"),
    "rows.jsonl.gz": lambda path, frame: write(path, gzip.compress(lines(ROWS))),
    "rows.json": lambda path, frame: write(path, json.dumps(ROWS, indent=2)),
    "lines.json": lambda path, frame: write(path, lines(ROWS)),
    "columns.json": lambda path, frame: write(path, json.dumps(frame.to_dict("list"))),
    "rows.csv": lambda path, frame: frame.to_csv(path),  # with a column of row numbers that has no name
    "rows.tsv": lambda path, frame: frame.to_csv(path, sep="\t", index=False),
    "rows.csv.gz": lambda path, frame: frame.to_csv(path, index=False),
    "rows.parquet": lambda path, frame: frame.to_parquet(path),
    "rows.txt": lambda path, frame: write(path, lines(ROWS)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_holds_the_same(tmp_path, frame, name):
    WRITERS[name](tmp_path / name, frame)
    check(read(tmp_path / name))


def check(records):
    assert records.prompts.tolist() == ["a", "b"]
    assert records.prompt.tolist() == [0, 0, 1, 1]
    assert records.responses.tolist() == ["a1", ROWS[2]["response"], "b1", ""]
    assert records.reward.tolist() == [1.0, -2.0, 0.5, 0.0]
    assert records.log_probs.tolist() == [-1, -3, -2, -4]
    assert records.runs.tolist() == [2, 2], "they take turns"
    assert not len(records.bad)
    assert records.taken["reward"] == "reward"
    assert not records.in_tokens
    assert records.lengths.tolist() == [2, len(ROWS[2]["response"]), 2, 0]


def test_tables_of_pandas_stdin_folders_and_several_files(tmp_path, frame, monkeypatch):
    check(read(frame))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines(ROWS)))))
    check(read("-"))
    frame[:2].to_parquet(tmp_path / "1.parquet")
    frame[2:].to_json(tmp_path / "2.jsonl", lines=True, orient="records")
    check(read(tmp_path))
    check(read([tmp_path / "1.parquet", str(tmp_path / "2.jsonl")]))
    frame.drop(columns="reward").to_csv(tmp_path / "3.csv")
    with pytest.raises(ValueError, match=r"3\.csv has the scores none, .*1\.parquet reward") as error:
        read(tmp_path)
    told(error)


def test_data_sets_saved_to_disk(tmp_path, frame):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_pandas(frame)
    table.save_to_disk(tmp_path / "one")
    check(read(tmp_path / "one"))
    check(read(next((tmp_path / "one").glob("*.arrow"))))
    table.select([3, 2, 1, 0]).select([3, 2, 1, 0]).save_to_disk(tmp_path / "chosen")
    check(read(tmp_path / "chosen"))
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "splits")
    check(read(tmp_path / "splits", split="train"))
    with pytest.raises(ValueError, match="has the splits train, test: choose one, as split='train'"):
        read(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"split is .dev.; .* has train, test"):
        read(tmp_path / "splits", split="dev")


def test_data_sets_of_the_hub(tmp_path, frame, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name):
        asked.append(name)
        if name == "owner/none":
            raise ConnectionError("Couldn't reach it\non the Hub")
        return datasets.DatasetDict(train=datasets.Dataset.from_pandas(frame))

    monkeypatch.setattr(datasets, "load_dataset", load)
    check(read("owner/name"))
    with pytest.raises(
        FileNotFoundError, match=r"owner/none is no file here, and could not be had .* on the Hub"
    ) as error:
        read("owner/none")
    told(error)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder/none is not there"):
        read("folder/none")
    assert asked == ["owner/name", "owner/none"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="owner/name needs the package datasets: pip install datasets"):
        read("owner/name")


def test_a_list_a_prompt(tmp_path):
    for path in (write(tmp_path / "wide.jsonl", lines(WIDE)), write(tmp_path / "wide.json", json.dumps(WIDE))):
        records = read(path)
        assert records.table().to_dict("list") == {
            "prompt": ["a", "a", "b"],
            "response": ["a1", "a2", "b1"],
            "rewards": [1, 2, 3.5],
        }
    pd.DataFrame(WIDE).to_parquet(tmp_path / "wide.parquet")
    for source in (tmp_path / "wide.parquet", pd.read_parquet(tmp_path / "wide.parquet")):
        assert read(source).reward.tolist() == [1, 2, 3.5]
    assert read(records.table()).reward.tolist() == [1, 2, 3.5]


def test_conversations_as_prompts_and_responses(tmp_path):
    asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    rows = [
        {"prompt": asked, "completion": [{"role": "assistant", "content": "ho"}]},
        {"prompt": asked[1:], "completion": "ha"},
        {"prompt": [{**asked[1], "name": "x"}], "completion": "hu"},
        {"prompt": asked, "completion": "hm"},
        {"prompt": asked, "completion": [asked[1], asked[1]]},
    ]
    records = read(write(tmp_path / "chat.jsonl", lines(rows)))
    assert records.responses.tolist() == ["ho", "hm", "ha", "hu"]
    assert records.prompts.tolist()[:2] == ["system: be brief\nuser: hi", "hi"]
    assert records.messages == [asked, asked[1:], rows[2]["prompt"]]
    assert "must be a text, or a list of one message" in records.bad.reason[0]


def test_columns_are_guessed_or_named(tmp_path):
    row = {"question": "q", "answer": "7", "text": "so 6", "rm_score": 2, "true_reward": "3", "num_tokens": 5}
    row |= {"extracted_answer": 6, "is_correct": "Fail", "cumulative_logprob": -0.5, "mine": 9, "passed": None}
    path = write(tmp_path / "rows.jsonl", lines([row]))
    with pytest.raises(ValueError, match=r"rows.jsonl has no response: none of .*'text'.*say response=COLUMN") as error:
        read(path)
    told(error)
    records = read(path, response="text")
    assert records.prompts.tolist() == ["q"]
    assert dict(records.scores) == {"rm_score": [2], "true_reward": [3]}
    assert (records.in_tokens, records.lengths.tolist()) == (True, [5])
    assert (records.answers.tolist(), records.correct.tolist()) == (["6"], [False])
    assert records.log_probs.tolist() == [-0.5]
    assert records.taken == {
        "format": "plain",
        "prompt": "question",
        "response": "text",
        "reward": "rm_score",
        "gold": "true_reward",
        "log_prob": "cumulative_logprob",
        "length": "num_tokens",
        "answer": "extracted_answer",
        "correct": "is_correct",
    }
    named = read(path, response="text", reward="mine", gold="rm_score", answer="answer")
    assert list(named.scores) == ["mine", "rm_score"]
    assert named.answers.tolist() == ["7"]
    with pytest.raises(ValueError, match=r"has no column 'foo'; it has 'question', .*: say reward= one of these"):
        read(path, response="text", reward="foo")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{'prompt': 1}", "is not JSON"),
        ("[1]", "each line must be one JSON object"),
        ({"response": "x", "reward": 1}, "has prompt None"),
        ({"prompt": " ", "response": "x", "reward": 1}, "must have a word in it"),
        ({"prompt": "a", "reward": 1}, "has response None; it must be a text"),
        ({"prompt": "a", "response": 3, "reward": 1}, "has response 3"),
        ({"prompt": "a", "response": "x"}, "has no reward"),
        ({"prompt": "a", "response": "x", "reward": None}, "has no reward"),
        ({"prompt": "a", "response": "x", "reward": "good"}, "has reward 'good'; it must be a number"),
        ({"prompt": "a", "response": "x", "reward": "nan"}, "has reward nan; it must be finite"),
        ({"prompt": "a", "response": "x", "reward": float("-inf")}, "has reward -inf; it must be finite"),
        ('{"prompt": "a", "response": "x\\ud83d", "reward": 1}', "has half a character, '\\ud83d', in its response"),
        ('{"prompt": "a\\ud83d", "response": "x", "reward": 1}', "has half a character, '\\ud83d', in its prompt"),
    ],
)
def test_a_bad_row_is_named_and_kept_apart(tmp_path, row, reason):
    text = row if isinstance(row, str) else json.dumps(row)
    path = write(tmp_path / "rows.jsonl", lines(ROWS[:1]) + b"\n" + text.encode() + b"\n" + lines(ROWS[1:]))
    records = read(path)
    assert len(records) == 4
    assert records.rows.tolist() == [1, 5, 4, 6]
    (bad,) = records.bad.itertuples()
    assert bad.place == f"{path}, line 3"
    assert reason in bad.reason
    assert bad.row


@pytest.mark.parametrize("reward", [None, "good", float("nan")])
def test_a_file_of_bad_rows_only_is_an_error(tmp_path, reward):
    path = write(tmp_path / "rows.jsonl", lines([{**row, "reward": reward} for row in ROWS]))
    with pytest.raises(
        ValueError, match=r"rows.jsonl, line 1 has .*reward.*; no row of .*rows\.jsonl can be used"
    ) as error:
        read(path)
    told(error)


def test_a_wide_row_whose_lists_differ_is_kept_apart_and_of_a_list_the_bad_entry_only(tmp_path):
    rows = [
        *WIDE,
        {"prompt": "c", "responses": ["c1", "c2"], "rewards": [1]},
        {"prompt": "d", "responses": ["d1", "d2"], "rewards": [1, None]},
        {"prompt": "e", "responses": [], "rewards": []},
        {"prompt": "f", "responses": ["f1"], "rewards": 3},
    ]
    records = read(write(tmp_path / "wide.jsonl", lines(rows)))
    assert records.responses.tolist() == ["a1", "a2", "b1", "d1"]
    assert records.bad.place.str[-1].tolist() == ["3", "4", "5", "6"]
    for reason, said in zip(
        records.bad.reason, ("2 responses and 1 rewards", "no rewards", "list is empty", "rewards 3"), strict=True
    ):
        assert said in reason


def test_what_is_said_of_a_list_as_a_whole_is_not_taken_for_each(tmp_path):
    rows = [{**row, "label": True, "num_tokens": 7} for row in WIDE]
    records = read(write(tmp_path / "wide.jsonl", lines(rows)))
    assert (len(records), records.correct, records.in_tokens) == (3, None, False)
    rows = [{**ROWS[0], "log_prob": [-1.0, -2.0]}]
    assert read(write(tmp_path / "rows.jsonl", lines(rows))).log_probs is None


def test_a_log_probability_that_is_none_is_unknown_and_counted(tmp_path):
    rows = [{**row, "log_prob": value} for row, value in zip(ROWS, (0.5, "-1.5", None, 1e-7), strict=True)]
    records = read(write(tmp_path / "rows.jsonl", lines(rows)))
    np.testing.assert_array_equal(records.log_probs, [np.nan, np.nan, -1.5, 0.0])
    assert records.taken["log_prob"] == "log_prob (1 are no log-probability, and taken for unknown)"


@pytest.mark.parametrize("right", [True, 1, 1.0, "pass", "Passed", "true", "1", "correct"])
def test_right_and_wrong_in_many_words_are_the_reward_where_there_is_no_other(tmp_path, right):
    rows = [{"prompt": "a", "response": "x", "passed": right}, {"prompt": "a", "response": "y", "passed": 0}]
    rows.append({"prompt": "a", "response": "z", "passed": "perhaps"})
    records = read(write(tmp_path / "rows.jsonl", lines(rows)))
    assert records.correct.tolist() == [True, False]
    assert list(records.scores) == ["passed"]
    assert records.reward.tolist() == [1, 0]
    assert "has correct 'perhaps'; it must be true or false" in records.bad.reason[0]


def test_csv_cells_over_several_lines_and_of_any_length(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path / "rows.csv", f'prompt,response,reward\r\na,"one\ntwo",1\r\na,{long},2\r\na,b\r\na,"c",\r\n')
    records = read(path)
    assert records.responses.tolist() == ["one\ntwo", long]
    assert records.rows.tolist() == [2, 4]
    assert records.bad.place.tolist() == [f"{path}, line 5", f"{path}, line 6"]
    assert "has 2 fields, where the header has 3" in records.bad.reason[0]
    assert "has no reward" in records.bad.reason[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "is empty: it holds no row"),
        ("blank.jsonl", "\n \n", "is empty: it holds no row"),
        ("empty.csv", "", "is empty: it holds no row"),
        ("header.csv", "prompt,response\n", "is empty: it holds no row"),
        ("none.json", "[]", "is empty: it holds no row"),
        ("no_header.csv", "what is it?,a duck,0.3\nwhat is it?,a goose,0.5\n", "has no response: none of response"),
        ("twice.csv", "prompt,prompt\na,b\n", "has the column names ['prompt', 'prompt']: give each another"),
        ("quote.csv", 'prompt,response\na,"b\n', "line 2: unexpected end of data: mend its double quotes"),
        ("latin.jsonl", '{"prompt": "é"}'.encode("latin-1"), "is not UTF-8 (invalid continuation byte at byte 12)"),
        ("latin.csv", "prompt\né\n".encode("latin-1"), "is not UTF-8 (invalid continuation byte near line"),
        ("wide.jsonl", '{"prompt": "é"}'.encode("utf-16"), "is not UTF-8 (invalid start byte at byte 0)"),
        ("broken.json", '[{"prompt": 1},', "is not JSON (Expecting"),
        ("text.json", '"prompt"', "it must be a list of rows"),
        ("numbers.json", "[1, 2]", "row 1 is 1; it must be an object; it cannot be read, nor can the next 1"),
        ("columns.json", '{"prompt": ["a"], "response": []}', "has columns of different lengths"),
        ("broken.parquet", b"PAR1 and no more", "cannot be read as a table (ArrowInvalid"),
        ("broken.arrow", b"ARROW", "cannot be read as a table"),
        ("broken.jsonl.gz", gzip.compress(lines(ROWS * 99))[:-30], "cannot be read (EOFError"),
        ("other.jsonl", '{"a": 1, "b": 2}', "is among its columns, 'a', 'b': say response=COLUMN"),
    ],
)
def test_what_cannot_be_used_at_all_is_named_with_its_remedy(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=name) as error:
        read(path)
    assert message in told(error)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl is not there: mind the folder") as error:
        read(tmp_path / "nowhere.jsonl")
    told(error)
    with pytest.raises(ValueError, match=r"is a folder without \.jsonl, .*: give a file"):
        read(tmp_path)
    with pytest.raises(ValueError, match="source is empty; give a file"):
        read([])
    with pytest.raises(ValueError, match="format is 'foo'; it must be one of lm-eval, "):
        read(tmp_path, format="foo")
    path = write(tmp_path / "rows.jsonl", lines(ROWS))
    with pytest.raises(ValueError, match=r"split is .train., but .* is a file"):
        read(path, split="train")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(ValueError, match=r"rows.jsonl cannot be read \(PermissionError"):
            read(path)


def test_what_a_format_does_not_take_cannot_be_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", lines([{"chosen": "a", "rejected": "b", "prompt": "c", "r": 1}]))
    with pytest.raises(ValueError, match="reward is 'r', but format 'preference' has its own: leave it out"):
        read(path, format="preference", reward="r")
    with pytest.raises(
        ValueError, match=r"rows.jsonl is not as format 'ultrafeedback' has it \(KeyError: 'completions'"
    ):
        read(path, format="ultrafeedback")


def test_many_rows_of_parquet_come_in_batches(tmp_path):
    count = 25_001
    table = pa.table({"prompt": ["p"] * count, "response": ["r"] * count, "score": np.arange(count, dtype=float)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    records = read(tmp_path / "rows.parquet")
    assert records.rows.tolist() == list(range(1, count + 1))
    assert records.runs.tolist() == [1]


def test_a_minus_before_a_score_says_that_lower_is_better(tmp_path):
    table = pd.DataFrame({"prompt": ["a", "a"], "response": ["b", "c"], "toxicity": [0.25, 0.75], "harm": [1, 2]})
    records = read(table, reward="-toxicity", gold="-harm")
    assert list(records.scores) == ["-toxicity", "-harm"]
    np.testing.assert_array_equal(records.reward, [-0.25, -0.75])
    assert list(read(table, reward="toxicity").scores) == ["toxicity"]
    with pytest.raises(ValueError, match="has no column 'nothing'"):
        read(table, reward="-nothing")


def test_prompts_are_read_alone_each_once(tmp_path):
    asked = ["a film", "a\u2028play", "a film", "a book"]
    chat = [{"role": "user", "content": "a film"}]
    once = ["a film", "a\u2028play", "a book"]
    (tmp_path / "p.txt").write_text("\n".join(["a film", "", "a book", "a film"]))
    assert read_prompts(tmp_path / "p.txt") == ["a film", "a book"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    assert read_prompts(tmp_path / "p.jsonl") == once
    pd.DataFrame({"question": asked, "prompt": "other"}).to_csv(tmp_path / "p.csv", index=False)
    assert read_prompts(tmp_path / "p.csv", "question") == once
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": chat}))
    assert read_prompts(tmp_path / "c.jsonl") == ["a film"]
    for row, message in (
        ('{"prompt": 1.5}', "line 1 has prompt 1.5"),
        ('{"a": 1}', "has no prompt; it has 'a'"),
        ("{", "line 1 is not"),
    ):
        (tmp_path / "bad.jsonl").write_text(row + "\n")
        with pytest.raises(ValueError, match=message):
            read_prompts(tmp_path / "bad.jsonl")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")


def test_a_list_of_rows_and_a_table_of_datasets_are_read_as_a_file_is(tmp_path):
    import datasets

    rows = [{"prompt": "a", "response": "b", "score": 1.0}, {"prompt": "a", "response": "c", "score": 2.0}]
    for source in (rows, datasets.Dataset.from_list(rows)):
        np.testing.assert_array_equal(read(source).reward, [1, 2])
    for source in (None, 5):
        with pytest.raises(ValueError, match=f"source is {source}; give a file"):
            read(source)
    (tmp_path / "de.csv").write_text('prompt;response;score\na;"b; c";1.5\na;d,e;2\n')
    records = read(tmp_path / "de.csv")
    assert records.responses.tolist() == ["b; c", "d,e"]
    np.testing.assert_array_equal(records.reward, [1.5, 2])

"""What a file holds, as columns: prompts together, by number of draws, and as a table again."""

import numpy as np
import pandas as pd
import pytest

from bonlib.records.reading import read

ROWS = pd.DataFrame(
    {
        "prompt": ["b", "a", "c", "a", "b", "a"],
        "response": ["b1", "a1", "c1", "a2", "b2", "a3"],
        "reward": [1, 2, 3, 4, 5, 6],
        "gold": [0, 1, 0, 1, 0, 1],
        "log_prob": [-1.0, -2.0, None, -4.0, -5.0, -6.0],
        "num_tokens": [2, 2, 3, 2, 2, 2],
        "is_correct": [True, False, False, True, True, False],
        "extracted_answer": ["1", None, "3", "4", "5", "6"],
    }
)


def test_rows_of_a_prompt_stand_together_in_their_order():
    records = read(ROWS)
    assert records.prompts.tolist() == ["b", "a", "c"]
    assert records.prompt.tolist() == [0, 0, 1, 1, 1, 2]
    assert records.responses.tolist() == ["b1", "b2", "a1", "a2", "a3", "c1"]
    assert records.counts.tolist() == [2, 3, 1]
    assert records.runs.tolist() == [2, 3, 1]
    assert records.rows.tolist() == [1, 5, 2, 4, 6, 3]
    assert list(records.scores) == ["reward", "gold"]
    assert len(records) == 6


def test_blocks_are_prompts_of_equally_many_responses():
    records = read(ROWS)
    found = [(which.tolist(), rows.tolist()) for which, rows in records.blocks()]
    assert found == [([2], [[5]]), ([0], [[0, 1]]), ([1], [[2, 3, 4]])]


def test_the_table_is_read_as_it_was():
    records = read(ROWS)
    table = records.table()
    expected = ["prompt", "response", "reward", "gold", "log_prob", "length", "answer", "correct"]
    assert table.columns.tolist() == expected
    again = read(table, answer="answer")
    pd.testing.assert_frame_equal(again.table(), table)
    assert again.in_tokens
    assert np.isnan(again.log_probs[5])
    in_characters = read(ROWS[["prompt", "response", "reward"]])
    assert "length" not in in_characters.table()
    assert in_characters.lengths.tolist() == [2] * 6


def test_it_says_what_it_holds():
    rows = ROWS[["prompt", "response"]]
    assert repr(read(rows)) == "6 responses, 1 to 3 to each of 3 prompts, with no score"
    with pytest.raises(ValueError, match="'the table' has no score: score it first"):
        read(rows).reward  # noqa: B018
    bad = ROWS[:5].assign(reward=[1, "x", 2, 3, 4])
    assert repr(read(bad)) == ("4 responses, 1 to 2 to each of 3 prompts, with reward, gold; 1 row kept apart")

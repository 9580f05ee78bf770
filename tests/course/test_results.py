"""Tables of results, and who works on which row."""

import pytest
from filelock import FileLock

from bonlib.course.experiments.results import add_rows, claim, read_rows


def test_rows_of_a_run_replace_what_it_had_and_new_columns_are_added(tmp_path):
    table = tmp_path / "folder" / "runs.csv"
    assert list(read_rows(table)["run"]) == []
    add_rows(table, "1e5", [{"reward": 0.5}, {"reward": 0.6}])
    add_rows(table, "b", [{"reward": 0.7, "kl": 2.0}])
    add_rows(table, "1e5", [{"reward": 0.1}])
    rows = read_rows(table).set_index("run")
    assert rows["reward"].to_dict() == {"b": 0.7, "1e5": 0.1}
    assert rows["kl"].isna().to_dict() == {"b": False, "1e5": True}


def test_a_piece_of_work_is_claimed_once_and_let_go_of_after_an_error(tmp_path):
    lock = tmp_path / "folder" / "run.lock"
    with claim(lock) as ours, claim(lock) as theirs:
        assert ours
        assert not theirs
    with pytest.raises(RuntimeError), claim(lock):
        raise RuntimeError
    with claim(lock) as ours:
        assert ours
    with FileLock(lock), claim(lock) as ours:
        assert not ours

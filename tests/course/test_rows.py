"""Rows of files of JSON lines, whatever ends a line, and what is said of a bad one."""

import json

import pytest

from bonlib.course.making.rows import read_jsonl


def write(path, *lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\ufeff"])
def test_only_a_line_end_ends_a_line(tmp_path, mark):
    rows = [{"text": f"a{mark}b"}, {"text": "c"}]
    lines = [json.dumps(rows[0], ensure_ascii=ord(mark) < 32), json.dumps(rows[1])]
    assert read_jsonl(write(tmp_path / "rows.jsonl", *lines)) == rows


def test_blank_lines_a_byte_order_mark_and_other_line_ends_are_passed_over(tmp_path):
    lines = ["", "  ", '{"a": 1}\r', "\r", '\t{"a": 2}  ', "", ""]
    assert read_jsonl(write(tmp_path / "rows.jsonl", *lines, encoding="utf-8-sig")) == [{"a": 1}, {"a": 2}]
    assert read_jsonl(write(tmp_path / "empty.jsonl", "")) == []


@pytest.mark.parametrize(
    "line", ["null", "3", '"text"', "[1]", "true", "{'a': 1}", '{"a": 1', '{"a": 1} {"a": 2}', "NaN"]
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line):
    path = write(tmp_path / "rows.jsonl", '{"a": 1}', "", line)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3 is .*each line must be one JSON object") as error:
        read_jsonl(path)
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.jsonl is not UTF-8 .*save it as UTF-8"):
        read_jsonl(write(tmp_path / "rows.jsonl", '{"a": "é"}', encoding="utf-16"))

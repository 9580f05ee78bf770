"""METHODS.md has the table that the registry gives, and its text names what is there."""

import re

import pytest

from bonlib.course.methods_page import PAGE, methods_page, write_methods_page
from bonlib.course.runner import ROOT
from bonlib.inference import RULES
from bonlib.methods import METHODS


def test_the_page_on_disk_is_what_the_registry_gives(tmp_path):
    page = PAGE.read_text()
    assert methods_page(page) == page, "run `python -m bonlib methods`"
    copy = tmp_path / "page.md"
    copy.write_text(page.replace("| `vbon` |", "| of yesterday |"))
    assert write_methods_page(copy).read_text() == page


def test_each_method_has_one_row_and_each_row_stands_alone():
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| \[", line)]
    assert [row[1].strip("`") for row in rows] == [*METHODS, *RULES]
    for row in rows:
        assert len(row) == 6
        assert all(cell.strip("| ") and not cell.startswith("the same") for cell in row)


def test_links_and_functions_of_the_page_are_there():
    page = PAGE.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page):
        assert (ROOT / target).exists(), target
    sources = "".join(path.read_text() for path in (ROOT / "bonlib").rglob("*.py"))
    for name in re.findall(r"`(\w+_(?:return|loss))`", page):
        assert f"def {name}(" in sources, name
    for module in re.findall(r"`(bonlib(?:\.\w+)+)`", page):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="the page lacks the lines"):
        methods_page("# The methods\n")

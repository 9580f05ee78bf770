"""Every architecture: what is drawn, read, learned and judged is what a plain pass in double precision says.

`make test` takes a subset; `make test-architectures` takes all, prints the table and writes it to MODELS.md.
"""

from pathlib import Path

import matrix
import pytest
import torch
import zoo

PAGE = Path(__file__).parents[2] / "MODELS.md"
ADAPTED = [f"{base} {kind}" for base in ("llama", "gpt2") for kind in zoo.ADAPTERS]
QUICK = {"causal": zoo.QUICK_CAUSAL, "classifier": zoo.QUICK_CLASSIFIERS, "adapter": ADAPTED[: len(zoo.ADAPTERS)]}
WHOLE = {"causal": zoo.CORE_CAUSAL, "classifier": zoo.CORE_CLASSIFIERS, "adapter": ADAPTED}
TASKS = {
    "causal": ("drawing", "responses", "learning"),
    "classifier": ("judging",),
    "adapter": ("drawing", "responses", "learning"),
}
REFUSED = {
    "funnel": "refused: model FunnelForSequenceClassification cannot read text 3, of 4 tokens"
}  # it pools in twos
TITLES = {"causal": "Causal language models", "classifier": "Classifiers as reward models", "adapter": "Adapters"}


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        chosen = WHOLE if metafunc.config.getoption("--all-architectures") else QUICK
        cases = [(kind, name) for kind, names in chosen.items() for name in names]
        metafunc.parametrize("architecture", cases, ids=[f"{kind}-{name}" for kind, name in cases])


@pytest.fixture(scope="module")
def found(request):
    """What came out for each, in the end on a page if all were tried."""
    rows, threads = {kind: [] for kind in QUICK}, torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads only wait for each other
    yield rows
    torch.set_num_threads(threads)
    if request.config.getoption("--all-architectures"):
        tables = [f"## {TITLES[kind]}\n\n{matrix.table(rows[kind], TASKS[kind])}" for kind in rows]
        begin, border, _ = PAGE.read_text().partition("<!-- made by make test-architectures -->\n")
        PAGE.write_text(begin + border + "\n" + "\n\n".join(tables) + "\n")
        print("\n\n".join(tables))


def test_an_architecture_is_right_or_refused(architecture, found, monkeypatch):
    for memory in ("_remembered", "_remember"):  # what is said today, not what was found once
        monkeypatch.setattr(f"bonlib.models.ways.{memory}", lambda *_: None)
    kind, name = architecture
    row = matrix.examine(name, kind)
    found[kind].append(row)
    assert row.verdict.startswith(REFUSED.get(name, "right")), row


def test_the_page_has_what_is_tested():
    text = PAGE.read_text()
    for kind, names in WHOLE.items():
        assert f"## {TITLES[kind]}" in text
        for name in names:
            assert f"\n| {name} | {REFUSED.get(name, 'right |')}" in text, (kind, name)

"""The site: pages, cross-references and alternative texts; and that it works in a browser that reaches no network."""

import json
import re
from functools import partial

import nbformat
import pytest

from bonlib.course import site as site_module
from bonlib.course.frames import KNOBS, PRESETS, frames
from bonlib.course.runner import NOTEBOOKS, ROOT, find_notebooks
from bonlib.course.site import build_site
from bonlib.course.site.links import Links, api_names, papers, terms
from bonlib.course.site.pages import notebook_page
from bonlib.exact import kl_divergence
from bonlib.inference.draw_counts import TruncatedPoisson
from bonlib.inference.pessimism import pessimistic_policy
from bonlib.inference.rewind import rewind, rewind_at
from bonlib.inference.stopping import reservation_value
from bonlib.inference_aware import infalign_optimum, wind_optimum

LINKS = Links({"win rate": "term-win-rate"}, papers(ROOT / "CITATION.cff"), {"kl_bound": "bonlib.bounds.kl_bound"})


@pytest.mark.slow
def test_the_site_has_every_page_and_sphinx_does_not_complain(ran):
    assert [site.warnings for site in ran.sites] == [[]] * 3
    site = ran.sites[-1]
    for page in (
        "index",
        "sliders",
        "GLOSSARY",
        "METHODS",
        "ARCHITECTURE",
        "papers",
        "found",
        "times",
        "search",
        "api/bonlib.exact",
    ):
        assert f"{page}.html" in site.pages
    for path in find_notebooks():
        assert f"notebooks/{path.stem}.html" in site.pages
    assert ("MODELS.html" in site.pages) == (ROOT / "MODELS.md").exists()
    assert site.megabytes < 20


@pytest.mark.slow
def test_the_command_works_from_any_directory_and_its_last_lines_name_the_failure(ran, site):
    first, line, well, failed = ran.lines
    assert first.startswith("profile quick: ")
    assert re.fullmatch(r"\[ 1/1\] 02_three_outcomes  failed  \d+ s  quick/site/notebooks/02_three_outcomes.html", line)
    assert well == f"0 of 1 notebooks ran well; open {site.folder / 'index.html'}"
    assert failed.startswith(
        "FAILED 02_three_outcomes, cell 4 (from itertools import product): ValueError: probs[2] is -0.1"
    )
    assert ran.code == 1
    reports = json.loads((site.folder.parent / "reports.json").read_text())
    assert [row["status"] for row in reports] == ["ok", "failed", "failed"]


@pytest.mark.slow
def test_a_page_that_was_made_again_is_that_of_the_new_run(ran, site):
    """The first pages are made while the notebook runs, the last after it."""
    assert len(ran.sites) == 3
    page = (site.folder / "notebooks" / "02_three_outcomes.html").read_text()
    assert "<strong>failed</strong>" in page
    assert "probs[2] is -0.1" in page
    assert "had not been run" not in page
    assert "had not been run" in (site.folder / "notebooks" / "04_objectives.html").read_text()


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site):
    lost = []
    for name in site.pages:
        text = (site.folder / name).read_text()
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", target) or target == "#":
                continue
            file, _, mark = target.split("?")[0].partition("#")
            there = ((site.folder / name).parent / file).resolve() if file else site.folder / name
            if not there.exists() or (mark and there.suffix == ".html" and f'id="{mark}"' not in there.read_text()):
                lost.append(f"{name}: {target}")
    assert lost == []


@pytest.mark.slow
def test_a_page_has_results_alternative_texts_solutions_and_links(site):
    page = (site.folder / "notebooks" / "01_two_outcomes.html").read_text()
    assert 'alt="Figure. KL against n."' in page
    assert "version abc" in page
    assert page.count("<summary>A solution</summary>") == 4
    assert "SOLUTION" not in page
    assert "check_value(" not in page
    assert 'href="#equation-1"' in page
    assert 'id="equation-1"' in page
    assert 'href="../GLOSSARY.html#term-win-rate"' in page
    assert 'href="../papers.html#paper-beirami"' in page


@pytest.mark.slow
def test_the_table_of_times_says_what_ran_what_failed_and_what_did_not_run(site):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (site.folder / "times.html").read_text()))
    assert "01 · Two outcomes: how far does best-of-n really go? 0.1 ok 9 today abc" in text
    assert "2.0 failed : cell 4 (x = 'a|b'): ValueError: *no* $ 3 today abc" in text
    assert re.search(r"failed : cell 4 \(from itertools import product\): ValueError: probs\[2\] is -0.1", text)
    assert text.count("not run") == len(find_notebooks()) - 3
    assert re.search(r"folder quick : 2\.\d minutes in all", text)


@pytest.mark.slow
def test_the_page_of_a_failed_notebook_says_so_and_shows_its_error(site):
    page = (site.folder / "notebooks" / "03_how_far_how_good.html").read_text()
    assert "<strong>failed</strong>" in page
    assert "a deliberate error" in page


@pytest.mark.slow
def test_progress_log_lines_and_the_cell_that_installs_leave_no_trace_and_long_code_is_folded(site):
    page = (site.folder / "notebooks" / "01_two_outcomes.html").read_text()
    assert "sampling: 100%" not in page
    assert "git clone" not in page
    assert "injected" not in page
    assert re.search(r'<details class="[^"]*above-input', page)


@pytest.mark.slow
def test_a_site_replaces_a_site_and_nothing_else(site, tmp_path):
    (tmp_path / "mine.txt").write_text("dear to me")
    with pytest.raises(ValueError, match="which holds something else than a site: name an empty folder"):
        build_site(site.folder.parent, tmp_path)
    assert {path.name for path in site.folder.parent.iterdir()} == {
        "site", "figures", "running", "reports.json", "01_two_outcomes.ipynb", "02_three_outcomes.ipynb",
        "03_how_far_how_good.ipynb",
    }  # fmt: skip


def test_a_text_that_has_not_been_made_is_no_page(tmp_path, monkeypatch):
    for name in ("README.md", "METHODS.md", "data/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    monkeypatch.setattr(site_module, "ROOT", tmp_path)
    for models in (False, True):
        if models:
            (tmp_path / "MODELS.md").write_text("# Models")
        page = site_module._first_page(LINKS, [])
        assert ("\nMODELS\n" in page) == models
        assert "\nMETHODS\n" in page


def test_only_the_first_mention_becomes_a_link_and_code_and_mathematics_stay():
    text = "# The win rate\n\n`win rate` and $win rate$ and [win rate](x). A win rate, a win rate; `kl_bound(n)`."
    linked = LINKS.of_text(text, "notebooks/01.ipynb")
    assert linked.count("<a ") == 1
    assert linked.startswith("# The win rate\n\n`win rate` and $win rate$ and [win rate](x). A <a ")
    assert linked.endswith("win rate</a>, a win rate; {py:obj}`kl_bound(n) <bonlib.bounds.kl_bound>`.")


def test_equations_get_marks_and_their_numbers_lead_there():
    text = "From (1) and $f(1)$:\n\n$$a = b\n\\tag{1}$$\n\nSo (1), not (2)."
    linked = LINKS.of_text(text, "notebooks/01.ipynb")
    assert linked.count('<a href="#equation-1">(1)</a>') == 2
    assert '<a id="equation-1"></a>\n\n$$a = b' in linked
    assert "$f(1)$" in linked
    assert "(2)." in linked


def test_the_glossary_the_papers_and_the_library_are_read():
    found = terms(ROOT / "GLOSSARY.md")
    assert {"policy", "reference", "win rate", "calibrated reward"} <= set(found)
    marked = LINKS.marked("| $w$ | `win_rate` | what | – |")
    assert '<a id="term-win-rate"></a>' in marked
    cited = set(re.findall(r"[A-Z][a-zé]+ et al\.", "".join(path.read_text() for path in NOTEBOOKS.glob("*.ipynb"))))
    cited |= set(re.findall(r"[A-Z][a-zé]+ et al\.", (ROOT / "METHODS.md").read_text()))
    assert cited <= {paper.short for paper in papers(ROOT / "CITATION.cff")}
    names = api_names()
    assert names["Outcomes.best_of"] == "bonlib.exact.Outcomes.best_of"
    assert names["train"] == "bonlib.training.trainer.train"
    assert not [full for full in names.values() if ".course" in full]


def test_what_a_page_leaves_out():
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell("profile = 'quick'", metadata={"tags": ["injected-parameters"]}),
        nbformat.v4.new_code_cell("x = ...", id="x", metadata={"tags": ["exercise"]}),
        nbformat.v4.new_code_cell("check_value('1', x, 2)", metadata={"tags": ["check"]}),
        nbformat.v4.new_code_cell("show()"),
    ]
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Tab()"}
    cells[-1].outputs = [
        nbformat.v4.new_output("display_data", widget),
        nbformat.v4.new_output("stream", text="kept"),
    ]
    solved = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x = 2  # SOLUTION", id="x", metadata={"tags": ["exercise"]})]
    )
    page = notebook_page(nbformat.v4.new_notebook(cells=cells), solved, None, lambda text: text)
    assert [cell.source.splitlines()[0] for cell in page.cells] == [
        "# Title", "x = ...", "<details><summary>A solution</summary>", "show()"
    ]  # fmt: skip
    assert "```python\nx = 2\n```" in page.cells[2].source
    assert [output.text for output in page.cells[-1].outputs] == ["kept"]


@pytest.mark.parametrize("name", PRESETS)
def test_frames_are_what_bonlib_computes(name):
    outcomes = PRESETS[name]
    shown = frames(outcomes)["families"]
    policies = {
        "best-of-n": outcomes.best_of,
        "KL-RL": outcomes.tilt,
        "rewind": partial(rewind_at, outcomes),
        "Poisson n": lambda t: TruncatedPoisson(t).law(outcomes),
        "stopping": lambda cost: rewind(outcomes, reservation_value(outcomes.rewards, cost, outcomes.probs)),
        "pessimism": partial(pessimistic_policy, outcomes),
        "WIND": partial(wind_optimum, outcomes),
        "InfAlign": partial(infalign_optimum, outcomes, 4),
    }
    for family, (_, _, places) in KNOBS.items():
        assert len(places) == len(shown[family]["rows"]) == len(shown[family]["policies"])
        for place, row, policy in zip(places, shown[family]["rows"], shown[family]["policies"], strict=True):
            exact = policies[family](place)
            assert policy == pytest.approx(exact, abs=1e-5)
            assert row["kl"] == pytest.approx(kl_divergence(exact, outcomes.probs), rel=1e-4, abs=1e-9)
            assert row["win_rate"] == pytest.approx(outcomes.win_rate(exact), rel=1e-4)

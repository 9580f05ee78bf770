"""The sliders where people use them: JupyterLab, Voilà and the site, in a real Chromium.

Screenshots are kept in `_build/browser`.
"""

import base64
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from bonlib.course.frames import KNOBS, PRESETS
from bonlib.course.picture import FAMILIES, Knobs, PoliciesPicture
from bonlib.course.runner import BUILD, NOTEBOOKS
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.draw_counts import TruncatedPoisson
from bonlib.inference.rewind import rewind_at
from bonlib.inference.soft_best_of_n import soft_best_of

pytestmark = pytest.mark.slow
SCREENSHOTS = BUILD / "browser"
QUIET = (  # a browser of tests asks nobody on the network for anything
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
ERRORS = (
    "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr'], "
    ".jupyter-widgets-error-widget"
)
COIN = Outcomes([0.5, 0.5], [0.0, 1.0])
THREE = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])
THIRTY = Outcomes(np.full(30, 1 / 30), np.linspace(0, 1, 30))
MENU = """\
from bonlib.course.widgets import choose
from bonlib.exact import Outcomes

coin = Outcomes([0.5, 0.5], [0.0, 1.0])
choose(lambda n, of: coin.best_of(n)[of], n={"four": 4, "nine": 9}, of={"no": 0, "yes": 1})"""
STEP = 10**0.01  # of a slider that is even in the logarithm


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for path in map(shutil.which, names) if path]
    if not found:
        pytest.fail(
            f"none of {', '.join(names)} is installed: apt-get install chromium, or `make test` as root does it"
        )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found[0], args=list(QUIET))
        yield browser
        browser.close()


expect.set_options(timeout=30_000)


@pytest.fixture
def page(browser, request):
    """A page whose console is listened to; what it shows at the end is kept."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(30_000)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    yield page
    page.screenshot(path=SCREENSHOTS / (re.sub(r"\W+", "_", request.node.name).strip("_") + ".png"))
    page.close()
    assert not troubles, troubles


@contextmanager
def serving(folder: Path, *command: str, address: str):
    """Start a server of Jupyter on a free port of loopback, in a home of its own; yield its root."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = {name: str(folder / name) for name in (*places, "IPYTHONDIR", "BONLIB_STORE")}
    root, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with log.open("w") as output:
        words = [sys.executable, "-m", *command, f"--port={port}"]
        server = subprocess.Popen(words, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(root + address, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield root
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over a copy of the notebooks, which it may save into."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    menu = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(MENU)], metadata=kernel)
    nbformat.write(menu, folder / "notebooks" / "menu.ipynb")
    options = [
        "--no-browser", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
        "--LabApp.news_url=", f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    with serving(folder, "jupyterlab", *options, address="/api") as root:
        yield root


def open_and_run(page: Page, lab: str, notebook: str) -> None:
    """Open a notebook in JupyterLab, run all its cells, and see that none shows an error."""
    page.goto(f"{lab}/lab/tree/{notebook}.ipynb?reset")
    expect(page.locator(".jp-Notebook .jp-Cell").first).to_be_visible()
    current = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel"
    page.wait_for_function(f"{current}?.status == 'idle'")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(well => { window.ran = well })")
    page.wait_for_function("window.ran !== undefined", timeout=240_000)
    assert page.evaluate("window.ran")
    expect(page.locator(ERRORS)).to_have_count(0)


def show_numbers(page: Page) -> None:
    """Scroll to the numbers under the sliders, at once: JupyterLab is still laying out the cells around them."""
    page.evaluate("document.querySelector('table.readout').scrollIntoView({block: 'center'})")


def press(page: Page, slider: str, key: str, times: int) -> None:
    """Move the slider of this name by keys, as one does who has taken hold of it."""
    labelled = page.locator(".widget-slider:visible", has=page.get_by_text(slider, exact=True))
    labelled.locator(".noUi-handle").focus()
    for _ in range(times):
        page.keyboard.press(key)


def check_shown(page: Page, outcomes: Outcomes, knobs: Knobs, families: tuple[str, ...] = FAMILIES) -> None:
    """See that the numbers are those of `bonlib.exact`, and the picture the one that belongs to them."""
    policies = {
        "best-of-n": lambda: outcomes.best_of(knobs.n),
        "KL-RL": lambda: outcomes.tilt(knobs.beta),
        "soft best-of-n": lambda: soft_best_of(outcomes, knobs.n, knobs.temperature),
        "rewind": lambda: rewind_at(outcomes, knobs.acceptance),
    }
    table = page.locator("table.readout")
    for row, family in enumerate(families, 1):
        policy = policies[family]()
        exact = kl_divergence(policy, outcomes.probs), outcomes.win_rate(policy), policy @ outcomes.rewards
        expected = re.compile(r"\s+".join([r"■ " + re.escape(family), r".*?", *(f"{value:.3f}" for value in exact)]))
        expect(table.locator("tr").nth(row)).to_have_text(expected, use_inner_text=True)
    wanted = Image.open(io.BytesIO(PoliciesPicture(families).draw(outcomes, knobs)))
    deadline = time.monotonic() + 10
    while not (same := np.array_equal(shown_picture(page), np.asarray(wanted))) and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert same, "the picture is not that of the numbers"


def shown_picture(page: Page) -> np.ndarray:
    """The picture above the numbers, as pixels."""
    outputs = page.locator(".jp-OutputArea-child, .jp-OutputArea", has=page.locator("table.readout")).last
    picture = outputs.locator("xpath=preceding::img[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.get_attribute("src").split(",")[1]))))


def test_the_sliders_of_a_coin(page, lab):
    families = ("best-of-n", "KL-RL")
    open_and_run(page, lab, "01_two_outcomes")
    show_numbers(page)
    check_shown(page, COIN, Knobs(n=4, beta=0.5), families)
    press(page, "N", "ArrowRight", 3)
    check_shown(page, COIN, Knobs(n=7, beta=0.5), families)
    press(page, "β", "ArrowLeft", 13)
    check_shown(page, COIN, Knobs(n=7, beta=0.5 / STEP**13), families)
    page.screenshot(path=SCREENSHOTS / "01_sliders.png")


def test_the_sliders_of_three_outcomes(page, lab):
    open_and_run(page, lab, "02_three_outcomes")
    show_numbers(page)
    start = {"n": 4, "beta": 0.705, "temperature": 0.5, "acceptance": 0.4}
    check_shown(page, THREE, Knobs(**start))
    press(page, "N", "End", 1)
    press(page, "λ", "ArrowRight", 5)
    moved = start | {"n": 100, "temperature": 0.5 * STEP**5}
    check_shown(page, THREE, Knobs(**moved))
    press(page, "β", "ArrowRight", 10)
    press(page, "α", "ArrowLeft", 10)
    check_shown(page, THREE, Knobs(**moved | {"beta": 0.705 * STEP**10, "acceptance": 0.4 / STEP**10}))


def test_the_sliders_of_thirty_outcomes(page, lab):
    open_and_run(page, lab, "03_how_far_how_good")
    show_numbers(page)
    check_shown(page, THIRTY, Knobs())
    handle, track = (
        page.locator(f".widget-slider:visible .noUi-{part}").first.bounding_box() for part in ("handle", "base")
    )
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] / 2, track["y"] + 2, steps=5)
    page.mouse.up()
    table = page.locator("table.readout")
    expect(table).to_contain_text(re.compile(r"N = [3-6]\d"))
    shown = page.locator(".widget-slider:visible .widget-readout").first.inner_text()
    expect(table).to_contain_text(f"N = {shown}")  # the last step of the drag
    n = int(re.search(r"N = (\d+)", table.inner_text())[1])
    check_shown(page, THIRTY, Knobs(n=n))
    page.get_by_role("tab", name="reference π(y)").click()
    page.get_by_label("π", exact=True).select_option("one rare best")
    weights = np.append(np.ones(29), 0.02)
    check_shown(page, Outcomes(weights / weights.sum(), np.linspace(0, 1, 30)), Knobs(n=n))


def test_menus_as_those_of_the_summaries(page, lab):
    open_and_run(page, lab, "menu")
    shown = page.locator(".jp-OutputArea-output").last
    expect(shown).to_contain_text(f"{0.5**4:.4f}")
    page.get_by_label("n", exact=True).select_option("nine")
    page.get_by_label("of", exact=True).select_option("yes")
    expect(shown).to_contain_text(f"{1 - 0.5**9:.4f}")


def test_the_sliders_alone_behind_voila(page, tmp_path):
    shutil.copy(NOTEBOOKS / "sliders.ipynb", tmp_path)
    # Voilà's own page asks for icons of file menus, which this page has none of.
    page.route("https://cdn.jsdelivr.net/**", lambda route: route.fulfill(body="", content_type="text/css"))
    options = ["--no-browser", "--Voila.ip=127.0.0.1", str(tmp_path / "sliders.ipynb")]
    with serving(tmp_path, "voila", *options, address="/voila/static/voila.js") as root:
        page.goto(root, timeout=120_000)
        expect(page.locator("table.readout")).to_be_visible(timeout=60_000)
        check_shown(page, THREE, Knobs())
        press(page, "N", "ArrowRight", 5)
        check_shown(page, THREE, Knobs(n=9))
        page.screenshot(path=SCREENSHOTS / "voila.png")
        page.goto("about:blank")  # it would miss its server


@pytest.fixture
def offline(page):
    """A page that may read files and nothing else."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    yield page
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_sites_sliders_need_no_server(offline, site):
    offline.goto((site.folder / "sliders.html").as_uri())
    for name, n, beta in (("three outcomes", 4, 0.5), ("a fair coin", 6, 0.5), ("eight, the best rare", 10, 0.25)):
        offline.get_by_label("outcomes").select_option(name)
        offline.get_by_label("N", exact=True).fill(str(KNOBS["best-of-n"][2].index(n)))
        places = KNOBS["KL-RL"][2]
        nearest = min(range(len(places)), key=lambda place: abs(places[place] - beta))
        offline.get_by_label("β", exact=True).fill(str(nearest))
        outcomes = PRESETS[name]
        rows = zip((outcomes.best_of(n), outcomes.tilt(places[nearest])), (2, 3), strict=True)
        for policy, row in rows:
            kl, wins = kl_divergence(policy, outcomes.probs), outcomes.win_rate(policy)
            line = offline.locator("#explorer tr").nth(row - 1)
            expect(line).to_contain_text(f"{kl:.3f}", use_inner_text=True)
            expect(line).to_contain_text(f"{wins:.3f}", use_inner_text=True)
        bars = offline.locator("#explorer svg rect[fill='#0173b2']")
        heights = [float(bars.nth(place).get_attribute("height")) for place in range(len(outcomes))]
        policy = outcomes.best_of(n)
        np.testing.assert_allclose(np.array(heights) / max(heights), policy / policy.max(), atol=0.002)
    offline.get_by_label("Poisson n").check()
    offline.get_by_label("t", exact=True).fill(str(KNOBS["Poisson n"][2].index(4)))
    policy = TruncatedPoisson(4).law(outcomes)
    line = offline.locator("#explorer tr").last
    for number in (kl_divergence(policy, outcomes.probs), outcomes.win_rate(policy), outcomes.mean_reward(policy)):
        expect(line).to_contain_text(f"{number:.3f}", use_inner_text=True)
    offline.screenshot(path=SCREENSHOTS / "site_sliders.png")


def test_the_sites_mathematics_and_search_need_no_network(offline, site):
    for path in sorted((site.folder / "notebooks").glob("*.html")):
        offline.goto(path.as_uri())
        expect(offline.locator("mjx-container").first).to_be_attached()
        offline.wait_for_function("MathJax.startup.promise.then(() => true)")
        assert offline.locator("[data-mml-node='merror']").count() == 0, path.name
    offline.goto((site.folder / "notebooks" / "01_two_outcomes.html").as_uri())
    offline.screenshot(path=SCREENSHOTS / "site_notebook.png")
    folded = offline.locator("details.above-input").first
    expect(folded.locator("pre")).to_be_hidden()
    folded.locator("summary").click()
    expect(folded.locator("pre")).to_be_visible()
    offline.get_by_role("link", name="(1)").first.click()
    assert offline.url.endswith("#equation-1")
    offline.get_by_role("textbox", name="Search").first.fill("rewind")
    offline.keyboard.press("Enter")
    expect(offline.locator("#search-results")).to_contain_text("Three outcomes")

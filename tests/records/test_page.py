"""The page stands alone, has every section, and shows what people wrote as text."""

import base64
import re
from html.parser import HTMLParser
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
from records_by_hand import records

from bonlib.records.page import page
from bonlib.records.report import report

RNG = np.random.default_rng(0)
EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """What a browser would make of it: what is open, what is linked, what is where."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sections, self.links, self.images, self.words = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "img":
            self.images.append(given)
        self.links += [value for name, value in given.items() if name in ("href", "src", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


@pytest.fixture(scope="module")
def text():
    rewards = RNG.normal(size=(12, 8))
    responses = [[f"{EVIL} {draw}" for draw in range(8)] for _ in range(12)]
    return page(
        report(
            records(
                rewards,
                responses,
                prompts=[f"{EVIL} {place}" for place in range(12)],
                gold=rewards + RNG.normal(size=(12, 8)),
                answers=RNG.choice(["a", "b"], size=(12, 8)),
                correct=RNG.random((12, 8)) < 0.5,
                source=f"{EVIL}.jsonl",
                taken={"reward": EVIL},
            )
        )
    )


def test_it_is_whole_and_has_each_section(text):
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.sections == [
        "short", "wrong", "curve", "worth", "answers", "rules", "gold", "length", "scores", "prompts", "how",
    ]  # fmt: skip
    assert len(parsed.images) == 12


def test_it_needs_no_network_and_no_program(text):
    parsed = Page(text)
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in parsed.links)
    assert "http" not in text
    assert not {"script", "link", "iframe", "object", "embed"} & set(parsed.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 1_000_000


def test_what_people_wrote_is_text(text):
    parsed = Page(text)
    assert EVIL in " ".join(parsed.words)
    assert "<script" not in text


def test_pictures_can_be_read_and_are_described(text):
    for image in Page(text).images:
        assert len(image["alt"]) > 20
        drawing = fromstring(base64.b64decode(image["src"].split(",")[1]))
        assert drawing.tag.endswith("svg")


def test_the_same_report_is_the_same_page():
    given = records(RNG.normal(size=(3, 4)))
    assert page(report(given)) == page(report(given))


@pytest.mark.parametrize(("shape", "missing"), [((3, 4), "gold"), ((3, 1), "worth"), ((1, 5), "prompts")])
def test_it_speaks_of_what_there_is(shape, missing):
    text = page(report(records(RNG.normal(size=shape))))
    assert missing not in Page(text).sections
    assert ("nothing to choose from" in text) == (shape[1] == 1)
    assert ("by the jackknife" in text) == (shape == (1, 5))


def test_numbers_are_those_of_the_tables():
    rewards = RNG.normal(size=(12, 8))
    found = report(records(rewards, gold=-rewards, log_probs=np.full((12, 8), -9.0)))
    words = re.sub(r"\s+", " ", " ".join(Page(page(found)).words))
    row = found.curve.table.loc[4]
    assert f"{row['reward']:.3f} ± {row['reward_se']:.3f}" in words
    assert f"{row['kl']:.3f} ± {row['kl_se']:.3f}" in words
    assert "from the log-probabilities of the file" in words
    assert "best-of-N is best at N = 1 and falls by" in words
    assert "over-optimisation" in words
    assert "−1.000 ± 0.000 on average" in words

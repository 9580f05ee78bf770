"""The file of word problems: what it holds is what the model said, and what is right."""

import re

import pandas as pd
import pytest

from bonlib.course.experiments import arithmetic
from bonlib.course.experiments.arithmetic import (
    DRAWS,
    FILE,
    LAW,
    PROBLEMS,
    SEED,
    equation_holds,
    verifier,
    word_problems,
)
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore


@pytest.fixture(scope="module")
def rows():
    return pd.read_parquet(FILE)


def test_fewer_problems_are_the_first_of_more_and_their_answers_follow_from_their_numbers():
    truth = word_problems()
    assert len(truth) == PROBLEMS
    assert list(word_problems(8).items()) == list(truth.items())[:8]
    assert word_problems(8, seed=1).keys() != word_problems(8).keys()
    for place, (prompt, answer) in enumerate(truth.items()):
        a, b = map(int, re.findall(r"\d+", prompt.split("Question: ")[-1]))
        assert answer == (a + b, a - b, a * b, a + b)[place % 4]


@pytest.mark.parametrize(
    ("response", "holds"),
    [
        (" Jo buys 3 * 6 = 18 cards. The answer is 18.", 1),
        (" Jo has 3 + 6 = 9 cards. The answer is 9.", 1),  # the wrong sum done right
        (" 9 - 12 = 3", 0),
        (" 7 x 5 = 35, 35 + 1 = 3", 1),  # the first alone counts
        (" Jo has 3 + 6 = 8 cards.", 0),
        (" The answer is 18.", 0),
    ],
)
def test_the_verifier_that_errs_looks_at_the_first_equation(response, holds):
    assert equation_holds("", response) == holds


def test_the_file_holds_as_many_draws_of_each_problem_and_says_what_is_right(rows):
    truth = word_problems()
    assert rows["prompt"].unique().tolist() == list(truth)
    assert (rows.groupby("prompt").size() == DRAWS).all()
    judge, said = verifier(truth), (rows["prompt"].tolist(), rows["response"].tolist())
    answers = [None if pd.isna(answer) else answer for answer in rows["answer"]]
    assert answers == judge.answers(*said).tolist()
    assert (rows["correct"] == judge.verify(*said)).all()
    assert (rows["truth"] == rows["prompt"].map(truth)).all()
    assert ((rows["log_prob"] < 0) & (rows["confidence"] < 0) & rows["length"].between(1, LAW.max_new_tokens)).all()
    assert FILE.stat().st_size < 600_000


def test_the_problems_are_neither_too_easy_nor_too_hard_and_not_all_alike(rows):
    right = rows.groupby("prompt")["correct"].mean()
    assert 0.2 < right.mean() < 0.7
    assert right.std() > 0.2


def test_it_is_made_of_draws_of_the_model(language_model, tmp_path, monkeypatch):
    law = SamplingSettings(4)
    truth = {"The film": 3, "A story of": 4}
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(arithmetic, "FILE", tmp_path / "draws.parquet")
    monkeypatch.setattr(arithmetic, "LAW", law)
    monkeypatch.setattr(arithmetic, "DRAWS", 2)
    monkeypatch.setattr(arithmetic, "word_problems", lambda: truth)
    monkeypatch.setattr(arithmetic, "load_language_model", lambda name, **how: language_model)
    arithmetic.make_arithmetic()
    made = pd.read_parquet(tmp_path / "draws.parquet")
    drawn = SampleStore().draw(TransformersSampler(language_model), list(truth), 2, law, seed=SEED)
    assert made["response"].tolist() == drawn.texts.ravel().tolist()
    assert made["log_prob"].to_numpy() == pytest.approx(drawn.log_probs.ravel(), rel=1e-6)
    assert made["confidence"].to_numpy() == pytest.approx((drawn.log_probs / drawn.lengths).ravel(), rel=1e-6)


@pytest.mark.slow
def test_the_model_says_again_what_is_stored(rows, tmp_path):
    sampler = TransformersSampler(
        arithmetic.load_language_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    )
    prompt = rows["prompt"].iloc[0]
    drawn = SampleStore(tmp_path).draw(sampler, [prompt], 4, LAW, seed=SEED)
    assert drawn.texts[0].tolist() == rows["response"].tolist()[:4]
    assert drawn.log_probs[0] == pytest.approx(rows["log_prob"].to_numpy()[:4], abs=1e-3)

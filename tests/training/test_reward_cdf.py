"""The CDF that a method is told: prompt by prompt, and what it is asked wrongly."""

import numpy as np
import pytest

from bonlib.cdf import EmpiricalCdf, ExponentialCdf
from bonlib.training.reward_cdf import SampledCdf

SAMPLES = np.random.default_rng(0).normal(size=(3, 16))


@pytest.mark.parametrize("smoothing", ["posterior", "none", "exponential"])
def test_each_prompt_is_asked_of_its_own_samples(smoothing):
    prompts, asked = ["c", "a", "c", "b"], SAMPLES[[2, 0, 2, 1], :].max(axis=1)
    cdf = SampledCdf(["a", "b", "c"], SAMPLES, smoothing)
    own = [ExponentialCdf.fit(row) if smoothing == "exponential" else EmpiricalCdf(row, smoothing) for row in SAMPLES]
    for name in ("log_weak", "log_strict"):
        want = [getattr(own["abc".index(prompt)], name)(reward) for prompt, reward in zip(prompts, asked, strict=True)]
        np.testing.assert_allclose(getattr(cdf, name)(prompts, ["x"] * 4, asked), want)


def test_two_estimates_have_two_fingerprints():
    cdfs = [
        SampledCdf(["a", "b", "c"], SAMPLES),
        SampledCdf(["a", "b", "c"], SAMPLES[:, :8]),
        SampledCdf(["a", "b", "c"], SAMPLES, "none"),
        SampledCdf(["a", "b", "c"], SAMPLES, prior=(1.0, 0.0)),
        SampledCdf(["a", "b", "c"], SAMPLES, rounding=0.0),
    ]
    assert len({cdf.fingerprint for cdf in cdfs}) == 5


WRONG = {
    "prompts has 1 repeated": lambda: SampledCdf(["a", "a"], np.zeros((2, 3))),
    "has no samples": lambda: SampledCdf(["a"], np.zeros((1, 3))).log_weak(["unknown"], ["x"], np.zeros(1)),
    "samples has shape": lambda: SampledCdf(["a"], np.zeros((2, 3))),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

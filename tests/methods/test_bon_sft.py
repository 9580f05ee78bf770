"""BoN-SFT against full enumeration."""

import numpy as np
import pytest
from five_responses import MODEL, ONE, N, has_no_gradient, tensor

from bonlib.methods.bon_sft import BonSft, nll


def test_nll_and_the_forward_divergence_have_best_of_n_as_optimum():
    target = tensor(MODEL.best_of(N))
    has_no_gradient(lambda log_q: (target * nll(log_q)).sum(), MODEL.best_of(N))


def test_it_learns_from_the_best_of_every_n_draws():
    prompts, best, *_ = BonSft(3).examples(np.array([[3.0, 1.0, 2.0, 5.0, 9.0, 7.0], [0.0] * 6]), seed=0)
    assert prompts.tolist() == [0, 0, 1, 1]
    assert best[:2].tolist() == [[0], [4]]


WRONG = {
    r"log_probs holds 1; a log-probability": lambda: nll(-ONE),
    r"log_probs has shape \(1, 1\)": lambda: nll(ONE[None]),
    r"n is 2.5; the number of draws": lambda: BonSft(2.5),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

"""Policy filtration against the exact law of what it keeps, and against KL-RL."""

import numpy as np
import pytest
import torch
from five_responses import LOG_REF, TIED, TWO, all_tuples, mean_gradient, minus_kl, tables, tensor

from bonlib.exact import Outcomes
from bonlib.inference_aware import filtered
from bonlib.methods.filtration import Filtered, filter_weights, filtered_advantages, filtered_shares
from bonlib.methods.kl_rl import KlRl, kl_rl_return
from bonlib.training.gradients import leave_one_out
from bonlib.training.on_policy import Judged

W = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0, 1, 1, 2, 3])
KEPT = ["best", "best-random", "best-worst"]


def test_weights_of_ranks():
    assert filter_weights(4, "best").tolist() == [1, 0, 0, 0]
    assert filter_weights(4, "best-worst").tolist() == [0.5, 0, 0, 0.5]
    assert filter_weights(3, "best-random").tolist() == [0.5, 0.25, 0.25]


def test_responses_that_tie_share_their_ranks():
    weights = tensor([0.7, 0.2, 0.1, 0.0])
    got = filtered_shares(tensor([1, 2, 2, 0, 3.0, 3, 3, 3]), group=4, weights=weights)
    torch.testing.assert_close(got, tensor([0.1, 0.45, 0.45, 0, 0.25, 0.25, 0.25, 0.25]))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("model", [W, TIED])
def test_what_is_kept_has_the_exact_law(model, group, kept):
    weights = filter_weights(group, kept)
    drawn, chances = all_tuples(5, group, tensor(model.log_probs))
    shares = filtered_shares(tensor(model.rewards)[drawn], group=group, weights=weights)
    law = torch.zeros(5, dtype=torch.float64).index_add(0, drawn, shares * chances.repeat_interleave(group))
    np.testing.assert_allclose(law.numpy(), filtered(model, weights.numpy()), atol=1e-14)


@pytest.mark.parametrize("kept", ["best-random", "best-worst"])
def test_of_two_responses_either_is_kl_rl(kept):
    rng = torch.Generator().manual_seed(0)
    mine, ref, rewards = (torch.rand(6, generator=rng, dtype=torch.float64) - 2 for _ in range(3))
    got = filtered_advantages(mine, ref, rewards, group=2, beta=0.3, kept=kept)
    torch.testing.assert_close(got, leave_one_out(kl_rl_return(mine, ref, rewards, beta=0.3), group=2))


def test_a_filter_does_not_follow_the_gradient_of_the_mean_reward():
    probs, above = W.probs, W.rewards - W.probs @ W.rewards
    wanted = probs * above
    for kept, cosine in (("best", 0.80), ("best-worst", 0.99)):
        law = filtered(W, filter_weights(4, kept).numpy())
        followed = law * above - probs * (law @ above)
        found = wanted @ followed / np.linalg.norm(wanted) / np.linalg.norm(followed)
        assert found == pytest.approx(cosine, abs=5e-3)


def test_the_kl_is_that_of_all_responses():
    logits, none = tensor([0.3, -0.5, 0.9, 0.1, -1.2]), torch.zeros(5, dtype=torch.float64)
    got = mean_gradient(
        lambda mine, ref, drawn: filtered_advantages(mine, ref, none[drawn], group=3, beta=0.7, kept="best"),
        LOG_REF, 3, logits,
    )  # fmt: skip
    learned = logits.clone().requires_grad_()
    (want,) = torch.autograd.grad(0.7 * minus_kl(learned.log_softmax(0), LOG_REF), learned)
    torch.testing.assert_close(got, want)


def test_the_return_is_that_of_kl_rl():
    log_ref = tables(W)[0][:4]
    judged = Judged(["p"] * 4, ["a"] * 4, log_ref - 0.1, log_ref, tensor([1.0, 4.0, 2.0, 0.0]), group=4)
    method = Filtered(0.5)
    returns = method.returns(judged, None)
    assert torch.equal(returns, KlRl(0.5).returns(judged, None))
    got = method.advantages(judged, returns)
    torch.testing.assert_close(got, tensor([0, 2 * 3.0, 0, 2 * -7 / 3]), atol=1e-12, rtol=0)
    assert method.eased(0.5) == Filtered(1.0)


WRONG = {
    r"kept is 'middle'; it must be one of best, best-random": lambda: Filtered(1, kept="middle"),
    r"kept is 'x'": lambda: filter_weights(3, "x"),
    r"weights has shape \(3,\)": lambda: filtered_shares(TWO, group=2, weights=torch.ones(3)),
    r"group is 1": lambda: filtered_advantages(TWO, TWO, TWO, group=1, beta=1, kept="best"),
    r"ref_log_probs has shape": lambda: filtered_advantages(TWO, torch.zeros(3), TWO, group=2, beta=1, kept="best"),
    r"beta is 0": lambda: Filtered(0),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

"""DPO and IPO against TRL, full enumeration and what they must not see."""

from collections import defaultdict
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from five_responses import LOG_REF, MODEL, ONE, TWO, has_no_gradient, tensor
from hypothesis import given
from hypothesis import strategies as st

from bonlib.methods.dpo import Dpo, dpo_loss, ipo_loss

LOG_PROB = st.floats(-50, 0)
PAIR = st.tuples(LOG_PROB, LOG_PROB, LOG_PROB, LOG_PROB)


def trl_loss(kind, pair, beta):
    """TRL's loss of one pair of one-token responses; only the pass through a model is replaced."""
    from trl import DPOTrainer

    one = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        accelerator=one, model=SimpleNamespace(training=False), beta=beta, loss_types=[kind], loss_weights=[1.0],
        f_divergence_type="reverse_kl", precompute_ref_logps=True, ld_alpha=None, use_weighting=False,
        aux_loss_enabled=False, _total_train_tokens=0, _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    chosen, rejected, ref_chosen, ref_rejected = pair
    token = torch.stack([chosen, rejected])[:, None]
    outputs = SimpleNamespace(log_probs=token, entropy=0 * token, mean_logits=0 * token, is_top1=token > 0)
    inputs = {
        "input_ids": torch.zeros(2, 2, dtype=torch.long), "completion_mask": torch.tensor([[0, 1], [0, 1]]),
        "ref_chosen_logps": ref_chosen[None], "ref_rejected_logps": ref_rejected[None],
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


@pytest.mark.parametrize(("kind", "loss"), [("sigmoid", dpo_loss), ("ipo", ipo_loss)])
def test_dpo_and_ipo_agree_with_trl_in_value_and_gradient(kind, loss):
    torch.manual_seed(0)
    pairs = -torch.rand(4, 20, dtype=torch.float64) * 30
    for beta in (0.01, 0.1, 1.0, 5.0):
        mine, theirs = pairs.clone().requires_grad_(), pairs.clone().requires_grad_()
        got = loss(*mine, beta=beta)
        want = torch.stack([trl_loss(kind, pair, beta) for pair in theirs.T])
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        got.sum().backward()
        want.sum().backward()
        torch.testing.assert_close(mine.grad[:2], theirs.grad[:2], rtol=1e-6, atol=1e-6)


@given(PAIR, st.floats(0.01, 5), st.floats(-20, 0))
def test_preference_losses_see_the_margin_only(pair, beta, shift):
    chosen, rejected, ref_chosen, ref_rejected = (tensor([x]) for x in pair)
    for loss in (dpo_loss, ipo_loss):
        moved = loss(chosen + shift, rejected, ref_chosen + shift, ref_rejected, beta=beta)
        torch.testing.assert_close(
            moved, loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta), rtol=1e-6, atol=1e-9
        )
    won = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    lost = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=beta)
    assert (-won).exp().item() + (-lost).exp().item() == pytest.approx(1)
    assert dpo_loss(chosen, rejected, chosen, rejected, beta=beta).item() == pytest.approx(np.log(2))


def test_the_optimum_of_dpo_is_the_tilt_by_the_rewards_that_made_the_preferences():
    def mean_loss(log_q, beta=0.7):
        total = 0
        for i, j in product(range(5), repeat=2):
            wins = 1 / (1 + np.exp(MODEL.rewards[j] - MODEL.rewards[i]))
            pair = (log_q[i : i + 1], log_q[j : j + 1], LOG_REF[i : i + 1], LOG_REF[j : j + 1])
            total = total + MODEL.probs[i] * MODEL.probs[j] * wins * dpo_loss(*pair, beta=beta)
        return total

    has_no_gradient(mean_loss, MODEL.tilt(0.7))


def test_dpo_pairs_are_ordered_different_and_without_ties():
    rewards = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.0] * 7])
    prompts, pairs, *_ = Dpo(0.1).examples(rewards, seed=0)
    assert len(pairs) == 12
    assert not prompts.any()
    assert len({tuple(sorted(pair)) for pair in pairs}) == 12
    assert (rewards[prompts, pairs[:, 0]] > rewards[prompts, pairs[:, 1]]).all()


WRONG = {
    r"rejected has shape \(2,\).*as chosen has": lambda: dpo_loss(ONE, TWO, ONE, ONE, beta=1),
    r"ref_rejected holds a number that is not finite": lambda: ipo_loss(ONE, ONE, ONE, ONE * torch.inf, beta=1),
    r"beta is 0; the KL coefficient": lambda: dpo_loss(ONE, ONE, ONE, ONE, beta=0),
    r"beta is nan": lambda: ipo_loss(ONE, ONE, ONE, ONE, beta=float("nan")),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

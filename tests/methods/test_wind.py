"""WIND on the policy's own draws, against enumeration of all groups and the game's exact end."""

import pytest
import torch
from five_responses import LOG_REF, MODEL, TIED, TWO, exact_gradient, mean_gradient, minus_kl, tables, tensor
from hypothesis import given
from hypothesis import strategies as st

from bonlib.inference_aware import wind_optimum
from bonlib.methods.wind import Wind, win_shares, wind_advantages
from bonlib.training.gradients import leave_one_out
from bonlib.training.on_policy import Judged

LOGITS = tensor([0.3, -0.5, 0.9, 0.1, -1.2])
BETA = 0.3


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=3))
def test_a_share_is_that_of_the_others_that_are_beaten(rows):
    want = [
        sum((x > y) + (x == y) / 2 for j, y in enumerate(row) if j != i) / 3 for row in rows for i, x in enumerate(row)
    ]
    torch.testing.assert_close(win_shares(tensor(rows).flatten(), group=4), tensor(want))


def test_rewards_that_differ_by_rounding_are_tied():
    assert win_shares(tensor([0.3, 0.1 + 0.2, 1.0]), group=3).tolist() == [0.25, 0.25, 1.0]


def game(model):
    """The objective whose gradient is the game's: the opponent, who is the policy too, stands still."""

    def objective(log_q):
        policy = log_q.exp()
        beaten = tensor(model.rebase(policy.detach().numpy()).calibrated_reward)
        return policy @ beaten + BETA * minus_kl(log_q, tensor(model.log_probs))

    return objective


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("model", [MODEL, TIED])
def test_the_mean_over_all_groups_is_the_games_gradient(model, group):
    rewards = tensor(model.rewards)
    got = mean_gradient(
        lambda mine, ref, drawn: wind_advantages(mine, ref, rewards[drawn], group=group, beta=BETA),
        tables(model)[0], group, LOGITS,
    )  # fmt: skip
    torch.testing.assert_close(got, exact_gradient(game(model), LOGITS))


def test_at_the_games_end_nothing_moves():
    rewards = tensor(TIED.rewards)
    got = mean_gradient(
        lambda mine, ref, drawn: wind_advantages(mine, ref, rewards[drawn], group=3, beta=BETA),
        tables(TIED)[0], 3, tensor(wind_optimum(TIED, BETA)).log(),
    )  # fmt: skip
    torch.testing.assert_close(got, torch.zeros(5, dtype=torch.float64), atol=1e-14, rtol=0)


def test_centring_the_shares_again_multiplies_the_game():
    rewards = tensor(MODEL.rewards)

    def centred(mine, ref, drawn):
        return leave_one_out(win_shares(rewards[drawn], group=3) - BETA * (mine - ref), group=3)

    def louder(log_q):
        return 1.5 * game(MODEL)(log_q) - 0.5 * BETA * minus_kl(log_q, LOG_REF)

    torch.testing.assert_close(mean_gradient(centred, LOG_REF, 3, LOGITS), exact_gradient(louder, LOGITS))


def test_the_return_is_the_share_less_the_kl():
    judged = Judged(["p"] * 2, ["a", "b"], tensor([-3.0, -2.0]), tensor([-2.0, -4.0]), tensor([1.0, 2.0]), group=2)
    returns = Wind(0.5).returns(judged, None)
    assert returns.tolist() == [0.5, 0.0]
    assert Wind(0.5).advantages(judged, returns).tolist() == [-0.5 + 1.5, 0.5 - 1.5]
    assert Wind(0.5).eased(0.25) == Wind(2.0)


WRONG = {
    r"group is 1": lambda: win_shares(TWO, group=1),
    r"group is 3": lambda: win_shares(TWO, group=3),
    r"rewards holds a number": lambda: win_shares(TWO * torch.inf, group=2),
    r"ref_log_probs has shape": lambda: wind_advantages(TWO, torch.zeros(3), TWO, group=2, beta=1),
    r"beta is -1": lambda: wind_advantages(TWO, TWO, TWO, group=2, beta=-1),
    r"beta is 0": lambda: Wind(0),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

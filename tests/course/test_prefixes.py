"""What prefixes tell: shares and figures against laws that are known."""

import numpy as np
import pytest

from bonlib.course.experiments.prefixes import Prefixes, followed, known_shares, lengths_told, values_followed
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.profiles import get_profile
from bonlib.exact import Outcomes, kl_divergence
from bonlib.training.prefix_values import PrefixRecipe


def test_shares_are_those_of_a_known_law_with_few_continuations():
    rng = np.random.default_rng(0)
    means = rng.beta(2, 3, 40_000)  # E[worth | prefix]; worth is 0 or 1
    worth = rng.random((len(means), 4)) < means[:, None]
    decided = means.var() / (means.mean() * (1 - means.mean()))
    assert known_shares(means, worth)["decided"] == pytest.approx(decided, abs=0.01)
    assert known_shares(means, worth)["told"] == pytest.approx(decided, abs=0.01)
    assert known_shares(np.full(len(means), means.mean()), worth)["told"] == pytest.approx(0, abs=0.01)
    halved = means.mean() + (means - means.mean()) / 2  # half of each deviation is a quarter of the variance away
    assert known_shares(halved, worth)["told"] == pytest.approx(0.75 * decided, abs=0.01)


def test_figures_of_a_policy_by_its_ratios_at_the_reference_s_draws():
    world = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0.0, 1.0, 1.0, 2.0, 3.0])
    policy, best = world.tilt(0.7), world.best_of(4)
    often = np.repeat(np.arange(5), (100 * world.probs).round().astype(int))
    ratios, targets, wins = (
        logs[often] for logs in (np.log(policy / world.probs) + 3, np.log(best / world.probs), world.calibrated_reward)
    )
    found = followed(ratios, targets, wins)
    assert found == pytest.approx(
        {
            "win_rate": world.win_rate(policy),
            "kl": kl_divergence(policy, world.probs),
            "best_win_rate": world.win_rate(best),
            "best_kl": kl_divergence(best, world.probs),
            "forward_kl": kl_divergence(best, policy),
            "reverse_kl": kl_divergence(policy, best),
        }
    )


def test_it_measures_what_the_bundled_models_say():
    prefixes = Prefixes(Harness(get_profile("quick")), 6, PrefixRecipe(draws=24, steps=200, batch_size=512))
    told, policy = lengths_told(prefixes, 16), values_followed(prefixes)
    assert 0 < told["told"] < told["decided"] < 1
    assert policy["best_win_rate"] > 0.8
    assert 0.5 < policy["win_rate"] < 1
    assert policy["kl"] > 0

"""Win rates with ties, standard errors over prompts, KL estimates by enumeration, and Pareto fronts by definition."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bonlib import metrics
from bonlib.exact import entropy, kl_divergence
from bonlib.metrics import mean_over_prompts, win_probability, win_rate

TABLE = st.lists(st.lists(st.integers(0, 3).map(float), min_size=3, max_size=3), min_size=2, max_size=4)


@given(TABLE, TABLE)
def test_win_probability_counts_pairs_with_ties_one_half(mine, theirs):
    count = min(len(mine), len(theirs))
    mine, theirs = np.array(mine[:count]), np.array(theirs[:count])
    pairs = (mine[:, :, None] > theirs[:, None, :]) + 0.5 * (mine[:, :, None] == theirs[:, None, :])
    np.testing.assert_allclose(win_probability(mine, theirs), pairs.mean(axis=2))
    assert win_rate(mine, theirs).value == pytest.approx(1 - win_rate(theirs, mine).value)


def test_standard_error_treats_prompts_as_the_units():
    estimate = mean_over_prompts([1.0, 2.0, 3.0, 4.0])
    assert estimate.value == 2.5
    assert estimate.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least two prompts"):
        mean_over_prompts([1.0])
    with pytest.raises(ValueError, match="same"):
        win_rate([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="opponents has a reward"):
        win_rate([[1.0], [2.0]], [[1.0], [np.nan]])


STRINGS = list(product(range(3), repeat=3))  # every response of three tokens over a vocabulary of three


class Autoregressive:
    """A policy over STRINGS with random logits after each prefix; `exclude` makes token 2 impossible at the start."""

    def __init__(self, seed, exclude=False):
        rng = np.random.default_rng(seed)
        prefixes = [prefix for length in range(3) for prefix in product(range(3), repeat=length)]
        self.logits = {prefix: torch.tensor(rng.normal(size=3)) for prefix in prefixes}
        if exclude:
            self.logits[()][2] = -torch.inf

    def along(self, string):
        """The logits at each position of a string, shape (3, 3)."""
        return torch.stack([self.logits[string[:place]] for place in range(3)])

    def log_probs(self):
        steps = [self.along(string).log_softmax(-1)[range(3), list(string)] for string in STRINGS]
        return torch.stack(steps).sum(1).numpy()

    def possible(self):
        return np.isfinite(self.log_probs())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("exclude", [False, True])
def test_kl_estimates_are_unbiased_except_k3_where_supports_differ(seed, exclude):
    policy, reference = Autoregressive(seed, exclude), Autoregressive(seed + 100)
    drawn = policy.possible()
    log_p, log_q = policy.log_probs()[drawn], reference.log_probs()[drawn]
    probs = np.exp(log_p)
    exact = kl_divergence(np.exp(policy.log_probs()), np.exp(reference.log_probs()))
    paths = [(policy.along(s), reference.along(s)) for s, possible in zip(STRINGS, drawn, strict=True) if possible]
    blackwellised = np.array([metrics.next_token_kl(*path).sum() for path in paths])
    assert probs @ metrics.kl_k1(log_p, log_q) == pytest.approx(exact)
    assert probs @ blackwellised == pytest.approx(exact)
    assert (metrics.kl_k3(log_p, log_q) >= 0).all()
    missed = 1 - np.exp(log_q).sum()  # the reference's mass on what the policy excludes
    assert missed > 0.05 if exclude else missed == pytest.approx(0)
    assert probs @ metrics.kl_k3(log_p, log_q) == pytest.approx(exact - missed)


@pytest.mark.parametrize("exclude", [False, True])
def test_entropies_of_the_next_token_add_up_to_that_of_the_policy(exclude):
    policy = Autoregressive(0, exclude)
    per_string = np.array([metrics.next_token_entropy(policy.along(string)).sum() for string in STRINGS])
    probs = np.exp(policy.log_probs())
    assert probs @ per_string == pytest.approx(entropy(probs))


def test_an_impossible_response_of_the_reference_is_infinitely_far():
    assert metrics.kl_k1([-1.0], [-np.inf]) == metrics.kl_k3([-1.0], [-np.inf]) == np.inf
    assert metrics.kl_k3([-1000.0], [-1.0]) == np.inf  # beyond the largest number, and no warning
    logits, ref_logits = torch.zeros(2), torch.tensor([0.0, -torch.inf])
    assert metrics.next_token_kl(logits, ref_logits) == torch.inf
    assert metrics.next_token_kl(ref_logits, logits).item() == pytest.approx(np.log(2))


@given(st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=6), st.floats(-1e4, 1e4, width=32))
def test_next_token_figures_are_stable_in_single_precision(numbers, shift):
    logits = torch.tensor(numbers)
    p = logits.double().softmax(0).numpy()
    uniform = torch.full_like(logits, shift)
    assert metrics.next_token_entropy(logits).item() == pytest.approx(entropy(p), abs=1e-5)
    assert metrics.next_token_kl(logits, uniform).item() == pytest.approx(np.log(len(p)) - entropy(p), abs=1e-4)
    assert metrics.next_token_kl(logits, logits).item() == 0


def test_next_token_kl_has_a_finite_gradient_where_tokens_are_excluded():
    logits = torch.tensor([0.5, -torch.inf, 1.0], requires_grad=True)
    metrics.next_token_kl(logits, torch.zeros(3)).backward()
    assert bool(logits.grad.isfinite().all())


POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from("abc")), min_size=1, max_size=12)


@given(POINTS)
def test_the_pareto_front_is_what_no_point_dominates(points):
    kl, score, methods = zip(*points, strict=True)
    want = [
        not any(k <= kl[i] and s >= score[i] and (k < kl[i] or s > score[i]) for k, s in zip(kl, score, strict=True))
        for i in range(len(kl))
    ]
    assert metrics.pareto_front(kl, score).tolist() == want
    shares = metrics.pareto_share(kl, score, methods)
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == set(methods)
    for name, share in shares.items():
        own = [on for on, method in zip(want, methods, strict=True) if method == name]
        assert share == pytest.approx(sum(own) / sum(want))


def test_pareto_shares_of_a_case_done_by_hand():
    kl, score = [0, 1, 2, 2, 3, 3], [0.5, 0.7, 0.7, 0.9, 0.9, 0.95]
    assert metrics.pareto_front(kl, score).tolist() == [True, True, False, True, False, True]
    shares = metrics.pareto_share(kl, score, ["sft", "vbon", "dpo", "vbon", "dpo", "dpo"])
    assert shares == {"sft": 0.25, "vbon": 0.5, "dpo": 0.25}
    assert metrics.pareto_front([], []).tolist() == []


def test_the_bootstrap_of_pareto_shares_resamples_prompts():
    kl, score = np.zeros((2, 8)), np.array([[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4])
    # Run a wins where more of the eight draws fall on its four prompts; at four each both are on the front.
    tie = 70 / 256
    found = metrics.pareto_share_bootstrap(kl, score, ["a", "b"], replicates=4000, seed=0)
    assert list(found) == ["a", "b"]
    assert (found["a"].value, found["a"].low, found["a"].high) == (0.5, 0.0, 1.0)
    assert found["a"].standard_error == pytest.approx(np.sqrt((1 - tie) / 4), abs=0.01)
    again = metrics.pareto_share_bootstrap(kl, score, ["a", "b"], replicates=4000, seed=0)
    assert again == found


def test_equal_runs_stay_equal_and_constant_prompts_have_no_spread():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 30))
    equal = metrics.pareto_share_bootstrap(
        np.tile(one, (3, 1)), np.tile(one, (3, 1)), list("abc"), replicates=20, seed=0
    )
    for share in equal.values():
        assert share == pytest.approx((1 / 3, 0, 1 / 3, 1 / 3))


def test_bad_arguments_of_kl_and_pareto_figures_are_named():
    with pytest.raises(ValueError, match=r"ref_log_probs has shape \(1,\)"):
        metrics.kl_k1([-1.0, -1.0], [-1.0])
    with pytest.raises(ValueError, match="log_probs holds 1;"):
        metrics.kl_k3([1.0], [-1.0])
    with pytest.raises(ValueError, match="ref_log_probs holds nan"):
        metrics.kl_k1([-1.0], [np.nan])
    with pytest.raises(ValueError, match="log_probs holds -inf"):
        metrics.kl_k1([-np.inf], [-1.0])
    with pytest.raises(ValueError, match=r"ref_logits has shape \(3,\)"):
        metrics.next_token_kl(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"logits has shape \(\)"):
        metrics.next_token_entropy(torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"logits is torch.bfloat16.*use .float\(\)"):
        metrics.next_token_entropy(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"kl has shape \(1,\) and score \(2,\)"):
        metrics.pareto_front([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="score holds a number that is not finite"):
        metrics.pareto_front([1.0], [np.nan])
    with pytest.raises(ValueError, match="methods has 2 names for 1 points"):
        metrics.pareto_share([1.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="methods has 0 names for 0 points"):
        metrics.pareto_share([], [], [])
    two = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"\(runs, prompts\)"):
        metrics.pareto_share_bootstrap([1.0], [1.0], ["a"], replicates=9, seed=0)
    with pytest.raises(ValueError, match="at least two prompts"):
        metrics.pareto_share_bootstrap(two[:, :1], two[:, :1], ["a", "b"], replicates=9, seed=0)
    with pytest.raises(ValueError, match="methods has 1 names for 2"):
        metrics.pareto_share_bootstrap(two, two, ["a"], replicates=9, seed=0)
    with pytest.raises(ValueError, match="replicates is 1"):
        metrics.pareto_share_bootstrap(two, two, ["a", "b"], replicates=1, seed=0)

"""Best-of-n on finite sets, against enumeration, 400-digit arithmetic and its own laws."""

import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bonlib.exact import Outcomes, entropy, kl_divergence, renyi2

TIES = ["first", "order"]


@st.composite
def outcomes(draw, max_size=8):
    """Any order, ties, zero probabilities and probabilities down to 1e-12."""
    size = draw(st.integers(1, max_size))
    weights = draw(
        st.lists(st.one_of(st.just(0.0), st.floats(-12, 0).map(lambda e: 10**e)), min_size=size, max_size=size)
    )
    assume(sum(weights) > 0)
    rewards = draw(st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size))
    return Outcomes(np.array(weights) / sum(weights), rewards)


def enumerate_best_of(model, n, ties):
    result = np.zeros(len(model))
    for drawn in itertools.product(range(len(model)), repeat=n):
        if ties == "first":
            winner = max(drawn, key=lambda y: model.rewards[y])  # max returns the first of equals
        else:
            winner = max(drawn, key=lambda y: (model.rewards[y], y))
        result[winner] += np.prod(model.probs[list(drawn)])
    return result


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("rewards", [[3, 1, 2, 0], [1, 1, 0, 1], [0, 0, 0, 0], [2, -1, 2, 5]])
def test_best_of_equals_enumeration_of_all_tuples(rewards, n, ties):
    model = Outcomes([0.1, 0.4, 0.3, 0.2], rewards)
    np.testing.assert_allclose(model.best_of(n, ties), enumerate_best_of(model, n, ties), rtol=1e-12)


def log_best_of_in_many_digits(model, n):
    """Formula (F≤^n − F^n) shared within ties, with sums from whichever side is small."""
    total = mpmath.fsum(map(mpmath.mpf, model.probs.tolist()))
    p = [mpmath.mpf(x) / total for x in model.probs.tolist()]
    result = []
    for y, reward in enumerate(model.rewards):
        if p[y] == 0:
            result.append(-mpmath.inf)
            continue
        group = mpmath.fsum(q for q, r in zip(p, model.rewards, strict=True) if r == reward)
        above = mpmath.fsum(q for q, r in zip(p, model.rewards, strict=True) if r > reward)
        below = mpmath.fsum(q for q, r in zip(p, model.rewards, strict=True) if r < reward)
        weak = 1 - above
        won = mpmath.log(-mpmath.expm1(n * mpmath.log1p(-group / weak))) if below > 0 else mpmath.mpf(0)
        result.append(n * mpmath.log1p(-above) + won + mpmath.log(p[y] / group))
    return result


def random_case(seed):
    """Outcomes with ties, spread out or with probabilities down to e^−60, and n from 1 to 1e12."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 12))
    spread = rng.dirichlet(np.full(size, 10 ** rng.uniform(-1, 1))) if seed % 2 else np.exp(rng.uniform(-60, 0, size))
    model = Outcomes(spread / spread.sum(), rng.integers(0, size, size).astype(float))
    return model, 10 ** rng.uniform(0, 12)


@pytest.mark.parametrize("seed", range(60))
def test_log_best_of_is_accurate_to_ten_digits_for_any_n(seed):
    model, n = random_case(seed)
    with mpmath.workdps(400):
        for got, want in zip(model.log_best_of(n), log_best_of_in_many_digits(model, n), strict=True):
            if abs(want) < 1e-290:  # F^n of the others underflows: the outcome is certain
                assert abs(got) < 1e-290
            elif want == -mpmath.inf:
                assert got == -np.inf
            else:
                assert abs(mpmath.mpf(float(got)) / want - 1) < 1e-10


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("seed", range(30))
def test_the_kl_is_accurate_to_ten_digits_for_any_n(seed, ties):
    model, n = random_case(seed)
    ordered = (
        model
        if ties == "first"
        else Outcomes(model.probs, np.lexsort((np.arange(len(model)), model.rewards)).argsort())
    )
    with mpmath.workdps(400):
        log_policy = log_best_of_in_many_digits(ordered, n)
        total = mpmath.fsum(map(mpmath.mpf, model.probs.tolist()))
        want = mpmath.fsum(
            mpmath.exp(a) * (a - mpmath.log(mpmath.mpf(b) / total))
            for a, b in zip(log_policy, model.probs.tolist(), strict=True)
            if a != -mpmath.inf
        )
        assert abs(kl_divergence(model.best_of(n, ties), model.probs) - want) < 1e-10


def test_the_textbook_form_cancels_where_ours_does_not():
    model = Outcomes([0.5, 1e-18, 0.5 - 1e-18], [0, 1, 2])
    with np.errstate(divide="ignore"):
        naive = np.log((0.5 + 1e-18) ** 10 - 0.5**10)
    assert naive == -np.inf
    assert model.log_best_of(10)[1] == pytest.approx(np.log(10) + 9 * np.log(0.5) + np.log(1e-18), rel=1e-12)


@given(outcomes(), st.floats(1, 1e12), st.sampled_from(TIES))
def test_best_of_is_a_distribution_on_what_can_happen(model, n, ties):
    policy = model.best_of(n, ties)
    assert policy.sum() == pytest.approx(1, abs=1e-9)
    assert (policy[model.probs == 0] == 0).all()


@given(outcomes(), st.sampled_from(TIES))
def test_best_of_one_is_the_reference(model, ties):
    np.testing.assert_allclose(model.best_of(1, ties), model.probs, rtol=1e-9, atol=1e-300)


@given(outcomes(), st.floats(1, 50), st.floats(1, 50), st.sampled_from(TIES))
def test_best_of_n_of_best_of_m_is_best_of_n_times_m(model, n, m, ties):
    twice = model.rebase(model.best_of(m, ties)).best_of(n, ties)
    np.testing.assert_allclose(twice, model.best_of(n * m, ties), rtol=1e-7, atol=1e-13)


@given(outcomes(), st.floats(1, 100), st.sampled_from(TIES))
def test_best_of_sees_only_the_order_of_rewards(model, n, ties):
    stretched = Outcomes(model.probs, np.exp(model.rewards) - 7)
    np.testing.assert_allclose(model.best_of(n, ties), stretched.best_of(n, ties), rtol=1e-12)


@given(outcomes(), st.floats(1, 100))
def test_both_rules_for_ties_win_equally_often(model, n):
    first, order = model.best_of(n), model.best_of(n, ties="order")
    assert model.win_rate(first) == pytest.approx(model.win_rate(order), abs=1e-9)
    for reward in set(model.rewards):
        group = model.rewards == reward
        assert first[group].sum() == pytest.approx(order[group].sum(), abs=1e-9)


@given(outcomes(), st.randoms(use_true_random=False))
def test_the_order_of_outcomes_does_not_matter(model, random):
    order = random.sample(range(len(model)), len(model))
    shuffled = Outcomes(model.probs[order], model.rewards[order])
    np.testing.assert_allclose(shuffled.best_of(5), model.best_of(5)[order], rtol=1e-9, atol=1e-300)


@given(outcomes())
def test_cdfs_count_what_is_worse_and_what_is_no_better(model):
    for y, reward in enumerate(model.rewards):
        assert model.cdf[y] == pytest.approx(model.probs[model.rewards <= reward].sum(), abs=1e-12)
        assert model.strict_cdf[y] == pytest.approx(model.probs[model.rewards < reward].sum(), abs=1e-12)
    assert model.win_rate(model.probs) == pytest.approx(0.5, abs=1e-9)


@given(outcomes(), st.floats(0.05, 100))
def test_no_policy_beats_the_tilt_at_its_own_objective(model, beta):
    def objective(policy):
        return model.mean_reward(policy) - beta * kl_divergence(policy, model.probs)

    best = model.tilt(beta)
    for rival in (model.probs, model.best_of(2), model.best_of(8), 0.9 * best + 0.1 * model.probs):
        assert objective(rival) <= objective(best) + 1e-9


def test_tilt_has_its_limits():
    model = Outcomes([0.2, 0.3, 0.5], [1.0, 3.0, 2.0])
    np.testing.assert_allclose(model.tilt(np.inf), model.probs)
    np.testing.assert_allclose(model.tilt(1e-6), [0, 1, 0], atol=1e-12)
    plain = model.probs * np.exp(model.rewards / 0.7)
    np.testing.assert_allclose(model.tilt(0.7), plain / plain.sum(), rtol=1e-12)
    unlikely = Outcomes([0.0, 0.5, 0.5], [1e6, 0.0, 1.0])
    np.testing.assert_allclose(unlikely.tilt(1e-3), [0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("reward", ["raw", "calibrated", "log_cdf"])
def test_a_tilt_maximises_the_reward_it_names(reward):
    model = Outcomes([0.2, 0.3, 0.1, 0.4], [1.0, 3.0, 3.0, 2.0])
    by_hand = {"raw": model.rewards, "calibrated": model.calibrated_reward, "log_cdf": np.log(model.cdf)}[reward]
    plain = model.probs * np.exp(by_hand / 0.3)
    np.testing.assert_allclose(model.tilt(0.3, reward), plain / plain.sum(), rtol=1e-12)


def test_the_tilt_by_log_cdf_is_best_of_n_without_term_b():
    model, n = Outcomes([0.2, 0.3, 0.5], [1.0, 3.0, 2.0]), 5
    term_b = model.best_of(n) / (model.probs * model.cdf ** (n - 1))
    assert (term_b >= 1).all()
    assert (term_b <= n).all()
    tilted = model.tilt(1 / (n - 1), "log_cdf") * term_b
    np.testing.assert_allclose(tilted / tilted.sum(), model.best_of(n), rtol=1e-12)


def test_entropies_and_moments():
    assert entropy(np.full(8, 0.125)) == pytest.approx(np.log(8))
    assert renyi2(np.full(8, 0.125)) == pytest.approx(np.log(8))
    assert entropy([1.0, 0.0]) == 0
    assert renyi2([0.5, 0.3, 0.2]) == pytest.approx(-np.log(0.38))
    model = Outcomes([0.5, 0.3, 0.2], [1.0, 2.0, 4.0])
    assert model.reward_variance(model.probs) == pytest.approx(0.5 + 1.2 + 3.2 - 1.9**2)


def test_a_trade_off_is_the_policies_one_by_one():
    model, knobs = Outcomes([0.2, 0.3, 0.5], [1.0, 3.0, 2.0]), [0.1, 0.5, 2.0]
    curve = model.trade_off(model.tilt, knobs)
    for place, beta in enumerate(knobs):
        policy = model.tilt(beta)
        assert curve.kl[place] == kl_divergence(policy, model.probs)
        assert curve.win_rate[place] == model.win_rate(policy)
        assert curve.reward[place] == model.mean_reward(policy)


def test_kl_divergence_of_a_coin_is_the_papers_closed_form():
    coin = Outcomes([0.5, 0.5], [0, 1])
    for n in (1, 2, 5, 20):
        worse = 2.0**-n
        entropy = -worse * np.log(worse) - (1 - worse) * np.log1p(-worse) if n else 0
        assert kl_divergence(coin.best_of(n), coin.probs) == pytest.approx(np.log(2) - entropy, abs=1e-14)


def test_kl_divergence_knows_missing_mass_and_itself():
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert kl_divergence([1.0, 0.0], [1e-320, 1.0]) == pytest.approx(320 * np.log(10), rel=1e-3)
    p = np.random.default_rng(0).dirichlet(np.ones(1000))
    assert kl_divergence(p, p) == 0


def test_a_million_outcomes():
    rng = np.random.default_rng(0)
    model = Outcomes(rng.dirichlet(np.ones(10**6)), rng.normal(size=10**6))
    policy = model.best_of(100)
    assert policy.sum() == pytest.approx(1, abs=1e-12)
    assert model.win_rate(policy) == pytest.approx(100 / 101, abs=1e-4)


def test_outcomes_cannot_be_changed():
    model = Outcomes([0.5, 0.5], [0, 1])
    names = ("probs", "rewards", "cdf", "strict_cdf", "log_cdf", "calibrated_reward", "log_probs")
    for array in (getattr(model, name) for name in names):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        model.probs = np.array([1.0])


@pytest.mark.parametrize(
    ("probs", "rewards", "message"),
    [
        ([0.5, 0.6], [0, 1], r"probs sums to 1\.1"),
        ([0.5, -0.5, 1.0], [0, 1, 2], r"probs\[1\] is -0\.5"),
        ([0.5, np.nan], [0, 1], r"probs\[1\] is nan"),
        ([0.5, 0.5], [0, np.nan], r"rewards\[1\] is nan"),
        ([0.5, 0.5], [-np.inf, 1], r"rewards\[0\] is -inf"),
        ([0.5, 0.5], [0, 1, 2], r"rewards has shape \(3,\)"),
        ([[0.5, 0.5]], [[0, 1]], r"probs has shape \(1, 2\)"),
        ([], [], r"probs has shape \(0,\)"),
    ],
)
def test_bad_outcomes_are_named(probs, rewards, message):
    with pytest.raises(ValueError, match=message):
        Outcomes(probs, rewards)


def test_sums_within_a_billionth_of_one_are_accepted():
    assert Outcomes([0.5, 0.5 + 5e-10], [0, 1]).probs.sum() == pytest.approx(1, abs=1e-15)
    with pytest.raises(ValueError, match="divide by the sum"):
        Outcomes([0.5, 0.5 + 5e-9], [0, 1])


@pytest.mark.parametrize("n", [0, 0.99, -1, np.nan, np.inf])
def test_bad_n_is_named(n):
    with pytest.raises(ValueError, match="n is"):
        Outcomes([0.5, 0.5], [0, 1]).best_of(n)


def test_other_bad_arguments_are_named():
    model = Outcomes([0.5, 0.5], [0, 1])
    with pytest.raises(ValueError, match="ties is 'random'"):
        model.best_of(2, ties="random")
    for beta in (0, -1, np.nan):
        with pytest.raises(ValueError, match="beta is"):
            model.tilt(beta)
    with pytest.raises(ValueError, match="reward is 'rank'"):
        model.tilt(1.0, reward="rank")
    with pytest.raises(ValueError, match=r"p has shape \(3,\)"):
        model.win_rate([0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match="p sums to"):
        model.mean_reward([0.2, 0.3])
    with pytest.raises(ValueError, match="same outcomes"):
        kl_divergence([1.0], [0.5, 0.5])

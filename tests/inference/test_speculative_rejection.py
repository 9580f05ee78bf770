"""Speculative rejection keeps what its law on a tree says, and takes what it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from small_trees import T2, by_reward, enumerated, played

from bonlib.inference.best_of_n import BestOfN
from bonlib.inference.rules import choose_in_groups, make_rule
from bonlib.inference.speculative_rejection import SpeculativeRejection, memory_model


def test_golden_numbers():
    for ties, expected in (
        ("cut", [0.019983, 0.092529, 0.641059, 0.246429]),
        ("exact", [0.03955, 0.10125, 0.6279, 0.2313]),
    ):
        rule = SpeculativeRejection(3, (1,), 1 / 3, ties)
        np.testing.assert_allclose(by_reward(rule.tree_law(T2)), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rule.tree_law(T2), enumerated(T2, 3, 2, ties), rtol=0, atol=1e-14)


def test_giving_up_none_is_best_of_n():
    rewards = np.random.default_rng(0).integers(0, 4, (50, 6)).astype(float)
    for rule in (SpeculativeRejection(6, (1,), 0), SpeculativeRejection(6, ())):
        partial = np.zeros((50, 6, len(rule.checkpoints)))
        np.testing.assert_array_equal(rule.choose(rewards, partial).kept, BestOfN(6).choose(rewards).kept)
    np.testing.assert_allclose(SpeculativeRejection(6, (1,), 0).tree_law(T2), T2.outcomes.best_of(6), atol=1e-14)


def test_a_misleading_partial_reward_is_worse_than_best_of_those_that_go_on():
    rule, reward = SpeculativeRejection(8, (1,), 0.75), T2.outcomes.mean_reward
    misled = T2.judged_by(-T2.values)
    told = T2.judged_by(T2.values)
    best = [reward(T2.outcomes.best_of(n)) for n in (2, 8)]
    assert reward(rule.tree_law(misled)) < best[0] < reward(rule.tree_law(told)) < best[1]


def test_where_all_tie_the_papers_cut_gives_up_none():
    partial = np.ones((3, 8, 2))
    assert SpeculativeRejection(8, (1, 2), 0.5, "cut").alive(partial).all()
    np.testing.assert_array_equal(SpeculativeRejection(8, (1, 2)).alive(partial).sum(axis=1), [[4, 2]] * 3)


@pytest.mark.parametrize("ties", ["exact", "cut"])
def test_what_it_keeps_has_its_law(ties):
    rule = SpeculativeRejection(4, (1,), 0.5, ties)
    generator = np.random.default_rng(4)
    draws = generator.choice(9, p=T2.outcomes.probs, size=(20_000, 4))
    kept, spent = rule.choose(T2.outcomes.rewards[draws], partial=T2.partial[draws // 3][..., None], seed=5)
    counts = np.bincount(np.take_along_axis(draws, kept[:, None], axis=1)[:, 0], minlength=9)
    assert chisquare(counts, 20_000 * rule.tree_law(T2)).pvalue > 0.01
    assert (spent == 4).all()


def test_decoding_by_it_has_the_same_law():
    rule = SpeculativeRejection(4, (1,), 0.5)
    assert chisquare(played(rule, T2, 20_000, 6), 20_000 * rule.tree_law(T2)).pvalue > 0.01


@given(
    st.integers(1, 9), st.integers(0, 3), st.sampled_from([0, 0.1, 0.3, 0.5, 0.9]), st.sampled_from(["exact", "cut"]),
    st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=60)
def test_at_each_checkpoint_the_worst_are_given_up(n, checkpoints, reject, ties, seed):
    rule = SpeculativeRejection(n, tuple(range(1, checkpoints + 1)), reject, ties)
    generator = np.random.default_rng(seed)
    partial = generator.integers(0, 4, (5, n, checkpoints)).astype(float)
    rewards = generator.normal(size=(5, n))
    alive = rule.alive(partial, seed=seed)
    for row in range(5):
        left = np.arange(n)
        for place in range(checkpoints):
            scores, on = partial[row, left, place], alive[row, left, place]
            count = len(left) - int(np.floor(reject * len(left) + 1e-9))
            assert on.sum() == (count if ties == "exact" else (scores >= np.sort(scores)[-count]).sum())
            assert scores[on].min() >= scores[~on].max(initial=-1)
            assert not alive[row, :, place][np.setdiff1d(np.arange(n), left)].any()
            left = left[on]
        kept = rule.choose(rewards, partial, seed=seed).kept[row]
        assert kept == left[rewards[row, left].argmax()]


def test_what_it_takes():
    rule = SpeculativeRejection(4, (3, 6))
    partial = np.array([[[4.0, 1], [3, 2], [2, 9], [1, 9]], [[1, 9], [2, 9], [9, 9], [8, 1]]])
    spent = rule.spending([[9, 5, 2, 9], [9, 9, 3, 9]], partial)
    # First: 3 + 3 + 2 + 3, then 3 + 2, of which the one that has ended is the better; second: 3 each, then 3 of one.
    assert spent.tokens.tolist() == [16, 15]
    # At the first checkpoint three unfinished and one that has ended; at the second one of either, or one unfinished.
    assert spent.calls.tolist() == [4 + 2, 4 + 1]
    assert SpeculativeRejection(4, ()).spending([9, 5, 2, 9], np.zeros((4, 0))).tokens == 25


@pytest.mark.parametrize(
    ("memory", "begun", "reject", "length"),
    [(1000, 50, 0.5, 200), (1000, 64, 0.2, 800), (90, 10, 0.7, 9), (80, 7, 0.5, 30)],
)
def test_the_memory_model_is_what_happens(memory, begun, reject, length):
    written, left, tokens, fills = 0.0, float(begun), 0.0, []
    while left * length > memory * (1 + 1e-12):
        full = memory / left
        tokens, written = tokens + left * (full - written), full
        fills.append(full)
        left *= 1 - reject
    tokens += left * (length - written)
    found = memory_model(memory, begun, reject, length)
    np.testing.assert_allclose(found.fills, fills, rtol=1e-12)
    assert found.rejections == len(fills)
    assert found.tokens == pytest.approx(tokens, rel=1e-12)
    assert (found.steps, found.best_of_n_tokens) == (length, begun * length)
    assert found.best_of_n_steps == pytest.approx(max(length, begun * length**2 / memory))


def test_it_is_in_the_table_and_goes_in_groups():
    rule = make_rule("speculative", n=4, checkpoints=(2,), reject=0.5)
    generator = np.random.default_rng(0)
    rewards, partial = generator.normal(size=(3, 10)), generator.normal(size=(3, 10, 1))
    chosen = choose_in_groups(rule, rewards, known={"partial": partial})
    assert chosen.kept.shape == (3, 2)
    np.testing.assert_array_equal(chosen.kept[:, 1], 4 + rule.choose(rewards[:, 4:8], partial[:, 4:8]).kept)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"reject": 1}, "reject is 1; it must be a finite number at least 0 and below 1"),
        ({"ties": "first"}, "ties is 'first'; it must be one of exact, cut"),
        ({"checkpoints": (2, 1)}, r"checkpoints is \(2, 1\)"),
        ({"checkpoints": 8}, "checkpoints is 8; it must hold numbers of tokens"),
    ],
)
def test_bad_settings_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeRejection(**({"n": 4, "checkpoints": (1,)} | bad))


def test_bad_arguments_are_named():
    rule = SpeculativeRejection(4, (1,))
    with pytest.raises(ValueError, match=r"lengths has shape \(3,\)"):
        rule.spending(np.ones(3), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"partial has shape \(4,\).* it must be \(4, 1\)"):
        rule.choose(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        rule.alive(np.full((4, 1), np.nan))
    with pytest.raises(ValueError, match=r"checkpoints is \(1, 2\); the law on a tree"):
        SpeculativeRejection(4, (1, 2)).tree_law(T2)
    scores = np.array([[1.0, 1, 1, 1], [1, 2, 3, 4]])
    with pytest.raises(ValueError, match="ties is 'cut', by which 2 to 4 responses of a prompt go on: take 'exact'"):
        SpeculativeRejection(4, (1,), 0.5, "cut").go_on(scores, 0 * scores, np.random.default_rng(0))
    for name in ("memory", "begun", "length"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            memory_model(**({"memory": 100, "begun": 10, "reject": 0.5, "length": 20} | {name: 0}))

"""What a rule makes of stored draws is what it makes of the world that they came from, on average."""

from itertools import permutations

import numpy as np
import pytest

from bonlib.bounds import kl_bound
from bonlib.estimates import best_of_n_kl, best_of_n_win_rate
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference import RULES, make_rule
from bonlib.inference.best_of_n import BestOfN
from bonlib.inference.measure import compare_rules, law_kl, measure, rules_at, spend
from bonlib.inference.regularised import MbrBestOfN
from bonlib.inference.rules import Choice, all_spent, checked_rewards, choose_in_groups
from bonlib.inference.votes import MajorityVote

REWARDS = np.array([[0.2, 1.0, 0.5, 0.5, 0.0], [3.0, -1.0, 2.0, 2.0, 2.0]])
GOLD = REWARDS**2 - REWARDS
LENGTHS = np.array([[4, 7, 2, 9, 1], [3, 3, 8, 1, 6]])


class First:
    """Keeps the first draw of n that is above what it wants, and stops there; else the last. It names no needs."""

    def __init__(self, n, wanted):
        self.n, self.wanted = n, wanted

    def choose(self, rewards, *, seed=0):
        table = checked_rewards(rewards, self.n)
        good = table >= self.wanted
        kept = np.where(good.any(axis=-1), good.argmax(axis=-1), self.n - 1)
        return Choice(kept, kept + 1)


class Needy:
    """Keeps the draw that others are nearest to, to see that what it needs comes with its draw."""

    needs = ("distances", "answers")
    n = 3

    def choose(self, rewards, *, distances, answers, seed=0):
        table = checked_rewards(rewards, self.n)
        np.testing.assert_array_equal(answers, table * 10)
        np.testing.assert_array_equal(distances, table[..., :, None] - 2 * table[..., None, :])
        return Choice(distances.sum(axis=-1).argmin(axis=-1), all_spent(table))


def by_all_orders(rule, row, gold, lengths):
    """Means over all ordered n-subsets, each draw outside an opponent."""
    kept, won, golds, long, tokens, spent = [], [], [], [], [], []
    for places in permutations(range(len(row)), rule.n):
        choice = rule.choose(row[list(places)])
        best = places[int(choice.kept)]
        others = np.delete(row, list(places))
        kept.append(row[best])
        golds.append(gold[best])
        long.append(lengths[best])
        won.append(np.mean((others < row[best]) + (others == row[best]) / 2))
        spent.append(choice.spent)
        tokens.append(lengths[list(places[: int(choice.spent)])].sum())
    found = {"reward": kept, "win_rate": won, "gold": golds, "length": long, "spent": spent, "tokens": tokens}
    return {name: np.mean(values) for name, values in found.items()}


@pytest.mark.parametrize("rule", [make_rule("best", n=2), make_rule("best", n=4), First(2, 1.0), First(3, 0.5)])
def test_it_is_the_mean_over_all_orders(rule):
    found = spend(rule, REWARDS, gold=GOLD, lengths=LENGTHS, rounds=4000)
    exact = hasattr(rule, "law")
    for prompt in range(2):
        for name, value in by_all_orders(rule, REWARDS[prompt], GOLD[prompt], LENGTHS[prompt]).items():
            near = {"abs": 1e-12} if exact else {"abs": 0.06, "rel": 0.02}
            assert found[name][prompt] == pytest.approx(value, **near), name
    np.testing.assert_allclose(found["control"], REWARDS.mean(axis=1))
    np.testing.assert_allclose(found["gold_control"], GOLD.mean(axis=1))


def test_a_random_one_is_the_control():
    found = spend(make_rule("random", n=3), REWARDS, lengths=LENGTHS)
    np.testing.assert_allclose(found["reward"], found["control"])
    np.testing.assert_allclose(found["win_rate"], 0.5)
    np.testing.assert_allclose(found["tokens"], 3 * LENGTHS.mean(axis=1))


def test_what_is_kept_goes_by_every_digit():
    rewards = 1e6 + REWARDS / 10
    for rule in (BestOfN(3), make_rule("soft", n=3, temperature=1e-9)):
        found = spend(rule, rewards, gold=rewards, rounds=200)
        np.testing.assert_allclose(found["gold"], found["reward"], rtol=1e-13)
    found = [spend(BestOfN(3), each, gold=GOLD)["gold"] for each in (REWARDS, rewards)]
    np.testing.assert_allclose(*found)


def test_a_random_number_is_counted_over_all_subsets():
    rule = make_rule("truncated-poisson", n=4, t=2.0)
    found = spend(rule, REWARDS, lengths=LENGTHS)
    chances = rule.count.chances(4)
    best = [spend(make_rule("best", n=k), REWARDS) for k in range(1, 5)]
    for name in ("reward", "win_rate"):
        np.testing.assert_allclose(found[name], sum(p * each[name] for p, each in zip(chances, best, strict=True)))
    np.testing.assert_allclose(found["spent"], rule.cost(None))
    np.testing.assert_allclose(found["tokens"], rule.cost(None) * LENGTHS.mean(axis=1))
    draws = np.random.default_rng(0).normal(size=(400, 64))
    kept = choose_in_groups(rule, draws)
    exact = spend(rule, draws)
    rewards = np.take_along_axis(draws, kept.kept, axis=1).mean(axis=1)
    assert rewards.mean() == pytest.approx(exact["reward"].mean(), abs=4 * rewards.std() / 20)
    assert kept.spent.mean() == pytest.approx(exact["spent"][0], abs=0.05)


def test_groups_estimate_what_the_law_says():
    world = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0.0, 1.0, 1.0, 2.0, 3.0])
    rule = make_rule("soft", n=3, temperature=1.0)
    draws = np.random.default_rng(0).choice(world.rewards, size=(1000, 24), p=world.probs)
    row = measure(rule, draws).table.iloc[0]
    assert row["reward"] == pytest.approx(world.mean_reward(rule.law(world)), abs=3 * row["reward_se"])
    assert row["win_rate"] == pytest.approx(world.win_rate(rule.law(world)), abs=3 * row["win_rate_se"])
    # 24 draws of 5 outcomes: the world is known well, but not quite.
    assert row["kl"] == pytest.approx(kl_divergence(rule.law(world), world.probs), abs=0.01)


def test_what_a_rule_needs_comes_with_its_draws():
    rewards = np.random.default_rng(0).normal(size=(4, 10))
    known = {"answers": rewards * 10, "distances": rewards[:, :, None] - 2 * rewards[:, None, :]}
    found = measure(Needy(), rewards, known=known)
    np.testing.assert_allclose(found.table["reward"], found.table["reward"])
    assert np.isnan(found.table["kl"].iloc[0])
    with pytest.raises(ValueError, match="distances is missing; Needy needs it"):
        measure(Needy(), rewards, known={"answers": rewards * 10})


@pytest.mark.parametrize(("share", "missing"), [(16, 0.00016), (8, 0.00065), (4, 0.0026)])
def test_the_kl_of_best_of_n_is_too_small_by_what_is_said(share, missing):
    rewards = np.random.default_rng(0).normal(size=(1, 256))
    n = 256 // share
    (kl,) = law_kl(make_rule("best", n=n), rewards)
    assert kl_bound(n) - kl == pytest.approx(missing, rel=0.03)
    assert missing == pytest.approx(1 / (24 * share**2), rel=0.03)
    assert kl == pytest.approx(float(best_of_n_kl(rewards, n)[0]), abs=0.01)


def test_draws_of_one_response_are_one_outcome():
    class Uniform:
        needs = ("answers",)
        n = 2

        def law(self, outcomes, answers):
            assert answers.tolist() == ["a", "b"]
            return np.full(len(outcomes), 1 / len(outcomes))

    known = {"responses": [["x", "y", "x", "x"]], "answers": [["a", "b", "a", "a"]]}
    (kl,) = law_kl(Uniform(), np.array([[1.0, 2.0, 1.0, 1.0]]), known=known)
    assert kl == pytest.approx(kl_divergence([0.5, 0.5], [0.75, 0.25]))


def test_a_table_has_a_row_a_rule_and_their_differences():
    rewards = np.random.default_rng(0).normal(size=(50, 16))
    rules = [("best", make_rule("best", n=4)), ("soft", make_rule("soft", n=4, temperature=0.5))]
    found = compare_rules(rules, rewards, gold=-rewards, lengths=np.ones_like(rewards))
    assert list(found.table.index) == ["best", "soft"]
    assert found.table.loc["best", "win_rate"] == pytest.approx(best_of_n_win_rate(rewards, 4).mean())
    assert found.table.loc["best", "tokens"] == 4
    against = found.against("best")
    assert against.loc["best", "reward"] == against.loc["best", "reward_se"] == 0
    assert against.loc["soft", "reward"] == pytest.approx(
        found.table.loc["soft", "reward"] - found.table.loc["best", "reward"]
    )
    assert 0 < against.loc["soft", "reward_se"] < found.table.loc["soft", "reward_se"]
    assert "soft" in repr(found)
    with pytest.raises(ValueError, match="rules has 'best' twice"):
        compare_rules([rules[0], rules[0]], rewards)


def test_the_rules_that_draws_allow():
    rewards = 10 * np.random.default_rng(0).normal(size=(50, 16))
    rules = dict(rules_at(4, rewards))
    assert list(rules)[:3] == ["random", "best", "best, n = 2"]
    (soft,) = (name for name in rules if name.startswith("soft") and name.endswith(" (0.3 sd)"))
    assert rules[soft].temperature == pytest.approx(3, rel=0.05)
    assert f"{rules[soft].temperature:.3g}" in soft
    assert not [name for name in rules if name.startswith("majority")]
    known = ("answers", "log_probs", "responses", "distances", "partial")
    everything = dict(rules_at(4, rewards, known))
    # n and the knob are all that a rule needs, where there are no checkpoints to be chosen, no threshold and no prior.
    told_more = {"speculative", "blockwise", "tree", "smc", "stop-at", "stop-by-prior"}
    assert {name.split(",")[0] for name in everything} == RULES.keys() - told_more
    assert all(rule.n == 4 or name == "best, n = 2" for name, rule in everything.items())
    assert [name for name in dict(rules_at(9, rewards)) if name.startswith("best,")] == [
        "best, n = 2", "best, n = 4", "best, n = 8",
    ]  # fmt: skip
    assert rules_at(2, np.ones((3, 4)))  # where all rewards are equal, a knob has their unit


def test_with_one_draw_every_rule_keeps_it():
    rewards = np.random.default_rng(0).normal(size=(4, 6))
    known = {"answers": np.zeros_like(rewards), "log_probs": -np.ones_like(rewards)}
    known |= {"responses": np.arange(24).reshape(4, 6), "distances": np.abs(rewards[:, :, None] - rewards[:, None])}
    table = compare_rules(rules_at(1, rewards, known), rewards, known=known).table
    np.testing.assert_allclose(table["reward"], rewards.mean(), atol=1e-14)
    np.testing.assert_allclose(table["kl"], 0, atol=1e-14)  # each has a law for one draw
    assert (table["spent"] == 1).all()


def test_all_draws_leave_no_opponent():
    assert np.isnan(spend(make_rule("best", n=5), REWARDS)["win_rate"]).all()
    assert np.isnan(spend(First(5, 1.0), REWARDS)["win_rate"]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rule: measure(rule, REWARDS[0]), r"rewards has shape \(5,\); it must be \(prompts, draws\)"),
        (lambda rule: measure(rule, REWARDS[:, :2]), "n is 3; with 2 draws a prompt it must be"),
        (lambda rule: measure(rule, REWARDS, gold=GOLD[0]), "gold has shape"),
        (lambda rule: measure(rule, REWARDS * np.nan), r"rewards\[0, 0\] is nan"),
        (lambda rule: measure(rule, REWARDS, rounds=0), "rounds is 0"),
        (lambda rule: law_kl(rule, REWARDS[0]), r"rewards has shape \(5,\); it must be \(prompts, draws\)"),
        (lambda rule: law_kl(rule, REWARDS, known={"responses": REWARDS[0]}), r"responses has shape \(5,\)"),
        (lambda rule: law_kl(MajorityVote(3), REWARDS), "answers is missing; MajorityVote needs it"),
        (lambda rule: spend(MajorityVote(3), REWARDS), "answers is missing; MajorityVote needs it"),
        (lambda rule: spend(MajorityVote(3), REWARDS, known={"answers": 3}), r"answers has shape \(\); it must be"),
        (
            lambda rule: choose_in_groups(MajorityVote(3), REWARDS, known={"answers": np.tile(REWARDS, 2)}),
            r"answers has shape \(\d+, 10\); it must be",
        ),
        (
            lambda rule: spend(MbrBestOfN(3, 1.0), REWARDS, known={"distances": REWARDS}),
            r"distances has shape .*; it must be \(\d+, 5, 5\)",
        ),
        (lambda rule: measure(rule, {"a": 1}), "rewards is {'a': 1}; it must be an array of real numbers"),
        (lambda rule: measure(rule, REWARDS + 1j), "rewards is array.*real numbers"),
        (lambda rule: measure(rule, REWARDS, gold="good"), "gold is 'good'; it must be an array of real numbers"),
        (lambda rule: rules_at(1.5, REWARDS), "n is 1.5"),
        (lambda rule: choose_in_groups(RULES["soft"], REWARDS), r"rule is soft.*; it must be one that is made"),
        (lambda rule: choose_in_groups(type(rule), REWARDS), r"rule is <class.*; it must be one that is made"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(make_rule("soft", n=3, temperature=1.0))
    assert "\n" not in str(caught.value)

"""Each rule is measured on the draws of the curve, and what is said of them is what was found."""

import re

import numpy as np
import pytest
from records_by_hand import records

from bonlib.answers import majority_law
from bonlib.inference.soft_best_of_n import SoftBestOfN
from bonlib.records import ways
from bonlib.records.page import page
from bonlib.records.report import report
from bonlib.records.ways import chosen_on_the_other_half, verdict

RNG = np.random.default_rng(0)
LOG_PROB = re.compile("kl(-set)?, ")


def words(found):
    """The section of the page, as text."""
    section = page(found).partition('<section id="rules">')[2].partition("</section>")[0]
    return " ".join(re.sub("<[^>]+>", " ", section).split())


def test_the_best_by_the_score_is_best_of_n():
    rewards = RNG.normal(size=(30, 20))
    found = report(records(rewards))
    table, about = found.tables["rules"], found.summary["rules"]
    assert (about["budget"], about["prompts"], about["judged_by"]) == (16, 30, None)
    curve = found.curve.table
    for name, n in (("random", 1), ("best, n = 8", 8), ("best", 16)):
        assert table.loc[name, "reward"] == pytest.approx(curve.loc[n, "reward"], abs=1e-12)
        assert table.loc[name, "reward_se"] == pytest.approx(curve.loc[n, "reward_se"], abs=1e-12)
        assert table.loc[name, "spent"] == n
    assert table["reward"].idxmax() == "best"
    assert found.verdict.startswith("By reward itself nothing beats the best of 16")
    assert found.verdict in repr(found)
    assert not [name for name in table.index if name.startswith("majority")]
    assert report(records(rewards[:, :5])).summary["rules"]["budget"] == 5
    assert report(records(np.ones((6, 4)))).tables["rules"].loc["best", "reward"] == 1


def test_the_rows_are_those_of_the_curve_where_prompts_have_unequal_draws():
    rewards = [RNG.normal(size=size) for size in RNG.permutation([32] * 34 + [3] * 6)]
    gold = [0.5 * mine + RNG.normal(size=len(mine)) for mine in rewards]
    found = report(records(rewards, gold=gold))
    table, curve = found.tables["rules"], found.curve.table
    assert found.summary["rules"]["budget"] == 3
    assert found.summary["rules"]["prompts"] == 40
    for name, n in (("random", 1), ("best, n = 2", 2), ("best", 3)):
        for ours, theirs in (("reward", "reward"), ("judged", "gold")):
            assert table.loc[name, ours] == pytest.approx(curve.loc[n, theirs], abs=1e-12)
            assert table.loc[name, f"{ours}_se"] == pytest.approx(curve.loc[n, f"{theirs}_se"], abs=1e-12)
    said = words(found)
    assert "34 of the 40 prompts have 16 draws or more: bonlib report FILE --most 16" in said
    assert "of the prompts of the curve above, and of all their draws" in said
    longer = report(records(rewards, gold=gold), most=16)
    assert longer.tables["rules"].loc["best", "judged"] == pytest.approx(longer.curve.table.loc[16, "gold"], abs=1e-12)
    assert "--most" not in words(longer)


def test_other_rules_have_no_bias_and_see_all_draws():
    rewards = [RNG.normal(size=size) for size in [9] * 30 + [3] * 10]
    found = report(records(rewards), most=3).tables["rules"]
    names = [name for name in found.index if name.startswith("soft, ")]
    spread = np.sqrt(np.concatenate([(mine - mine.mean()) ** 2 for mine in rewards]).mean())
    for name, times in zip(names, (0.1, 0.3, 1.0), strict=True):
        rule = SoftBestOfN(3, times * spread)
        means = []
        for mine in rewards:  # a law on the draws has each of them as often as it likes; here each comes once
            triples = [[a, b, c] for a in range(len(mine)) for b in range(a) for c in range(b)]
            drawn = mine[np.array(triples)]
            weights = np.exp((drawn - drawn.max(axis=1, keepdims=True)) / rule.temperature)
            means.append(((weights * drawn).sum(axis=1) / weights.sum(axis=1)).mean())
        # What the errors of orders and choices are beside those over prompts: 8 orders of 3 groups, or of 1.
        assert found.loc[name, "reward"] == pytest.approx(np.mean(means), abs=0.1)
        assert found.loc[name, "spent"] == 3


def test_of_many_prompts_some_are_asked_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(ways, "LOOKED_AT", 40 * ways.AT_LEAST * 16)
    rewards = RNG.normal(size=(100, 20))
    found = report(records(rewards, gold=rewards))
    table, curve = found.tables["rules"], found.curve.table
    assert found.summary["rules"]["prompts"] == 40
    for name, n in (("random", 1), ("best", 16)):
        assert abs(table.loc[name, "reward"] - curve.loc[n, "reward"]) < 3 * table.loc[name, "reward_se"]
    assert "40 of the 100 prompts of the curve above, at equal distances in the file" in words(found)


def test_a_rule_that_is_better_by_the_second_score_is_found():
    rng = np.random.default_rng(3)
    rewards = rng.normal(size=(200, 32))
    gold = np.where(rewards < 1.5, rewards, -2.0)
    found = report(records(rewards, gold=gold))
    about = found.summary["rules"]
    assert about["judged_by"] == "gold"
    assert about["best"]["gain"] > 10 * about["best"]["gain_se"] > 0
    assert set(about["best_n"]["rules"]) <= {"best, n = 2", "best, n = 4"}
    assert re.match("By gold, .* is better than the best of 16: .* is better by ", found.verdict)
    noise = report(records(rewards, gold=rng.normal(size=rewards.shape)))
    best = noise.summary["rules"]["best"]
    table = noise.tables["rules"]["judged"]
    assert abs(best["gain"]) < 3 * best["gain_se"]
    assert best["gain"] < table.max() - table["best"]  # on the prompts that chose it, it looks better than it is
    assert noise.verdict.startswith("By gold, no rule is clearly better than the best of 16: ")
    assert "not all chance" in words(noise)
    few = report(records(rewards[:9], gold=gold[:9]))
    assert few.verdict.startswith("There are too few prompts (9; it takes 10)")
    assert "not all chance" not in words(few)


def test_one_draw_is_among_the_numbers_of_draws():
    rewards = RNG.normal(size=(60, 16))
    found = report(records(rewards, gold=-rewards))
    assert found.summary["rules"]["best_n"]["rules"] == ["random", "random"]
    shown = words(found).partition("All settings that were tried")[0]
    assert re.search(r" random 1 .* best 16 .* best, n = 2 2 ", shown)  # what is compared, and the best setting
    assert re.fullmatch(
        r"By gold, one draw \(n = 1\) is better than the best of 16: each half of the prompts chooses it, and on the "
        r"other half it is better by 1\.\d+ ± 0\.0\d+\.",
        found.verdict,
    )


def test_votes_are_among_the_rules_where_there_are_answers():
    rng = np.random.default_rng(0)
    answers = rng.choice(["7", "8", "9"], p=[0.5, 0.3, 0.2], size=(150, 16))
    found = report(records(rng.normal(size=(150, 16)), answers=answers, correct=answers == "7"))
    table = found.tables["rules"]
    assert found.summary["rules"]["judged_by"] == "right answers"
    law = majority_law([0.5, 0.3, 0.2], 16)[0]
    assert table.loc["best", "judged"] == pytest.approx(found.curve.table.loc[16, "right"], abs=1e-12)
    assert table.loc["majority", "judged"] == pytest.approx(law, abs=4 * table.loc["majority", "judged_se"])
    assert found.summary["rules"]["best"]["gain"] > 0.1
    assert re.match(
        "By right answers, “?(borda|majority|weighted-vote).* is better than the best of 16: ", found.verdict
    )
    alone = report(records([[1.0, 0.0]] * 5, answers=[["a", "b"]] * 5, correct=[[True, False]] * 5, scores={}))
    assert alone.summary["rules"]["judged_by"] is None  # what is right is the score itself


@pytest.mark.parametrize(("log_prob", "ranked"), [(-9.0, True), (-0.1, False), (0.5, False), (np.nan, False)])
def test_rules_by_log_probabilities_are_left_out_where_these_cannot_be(log_prob, ranked):
    rewards = RNG.normal(size=(12, 8))
    found = report(records(rewards, gold=rewards, log_probs=np.full((12, 8), log_prob)))
    assert any(map(LOG_PROB.match, found.tables["rules"].index)) == ranked
    assert ("(kl, kl-set) are left out" in words(found)) != ranked


def test_each_half_chooses_for_the_other():
    gold = {"best": np.zeros(6), "even": np.array([1.0, -1, 1, -1, 1, -1]), "odd": np.array([-1.0, 2, -1, 2, -1, 2])}
    found = chosen_on_the_other_half(gold, ["even", "odd", "best"], "best")
    assert found["rules"] == ["even", "odd"]
    assert found["gain"] == -1
    assert found["gain_se"] == 0


def test_what_is_no_better_is_not_chosen():
    gold = np.array([0.1, 0.2, 0.7, 0.3])
    other = {"best": gold, "same": gold + 1e-17 * np.arange(4), "sum": (gold * 3) / 3}
    assert chosen_on_the_other_half(other, ["sum", "same", "best"], "best")["rules"] == ["best", "best"]


@pytest.mark.parametrize(
    ("rules", "numbers", "gain", "says"),
    [
        (["best"] * 2, ["best"] * 2, 0, "no rule is better than the best of 8: each half of the prompts chooses it."),
        (
            ["soft", "soft"], ["best", "best"], 3,
            "“soft” is better than the best of 8: each half of the prompts chooses it, and on the other half it is "
            "better by 3 ± 1.",
        ),
        (
            ["soft", "random"], ["best, n = 4", "random"], 3,
            "“soft” or one draw (n = 1) is better than the best of 8: one half of the prompts chooses the first and "
            "the other half the second; each judged on the half that did not choose it, they are better by 3 ± 1 "
            "on average. Among fixed numbers of draws, n = 1 or 4 is chosen in the same way, and is better by 3 ± 1.",
        ),
        (
            ["soft", "best"], ["best", "best"], 3,
            "“soft” is better than the best of 8: one half of the prompts chooses “soft” and the other half the best "
            "of 8 itself; each judged on the half that did not choose it, they are better by 3 ± 1 on average.",
        ),
        (
            ["best, n = 2"] * 2, ["best, n = 2"] * 2, -3e-5,
            "no rule is clearly better than the best of 8: each half of the prompts chooses the best of 2, and on the "
            "other half it is worse by 3e−05 ± 1.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_says_what_was_found(rules, numbers, gain, says):
    found = {"gain": gain, "gain_se": 1.0}
    about = {"budget": 8, "judged_by": "gold", "prompts": 20}
    about |= {"best": {"rules": rules} | found, "best_n": {"rules": numbers} | found}
    assert verdict(about, "reward") == f"By gold, {says}"


def test_numbers_have_true_minus_signs():
    rewards = RNG.normal(size=(20, 8))
    found = report(records(1e-6 * rewards, gold=-1e-6 * rewards))
    said = words(found)
    assert "e−0" in said
    assert not re.search(r"(?<![\w)])-\d|\de-\d", said)

"""What is wrong with the data is found where it was put, and not where it was not."""

import numpy as np
import pandas as pd
import pytest
from records_by_hand import records

from bonlib.records.findings import percent
from bonlib.records.report import report

RNG = np.random.default_rng(0)
SOUND = RNG.normal(size=(30, 8))


def found(name, *args, **fields):
    return next(each for each in report(records(*args, **fields)).findings if each.name == name)


def test_nothing_is_wrong_with_sound_data():
    findings = report(records(SOUND, log_probs=np.full((30, 8), -20.0))).findings
    assert [each.name for each in findings if each.matters] == []
    assert len(findings) == 12
    for each in findings:
        assert each.says.endswith(".")
        assert each.rows == 0 or each.name == "a reward that follows length"


def test_rows_kept_apart():
    bad = pd.DataFrame({"place": ["a.jsonl, line 3"], "reason": ["the reward is NaN"], "row": ["{}"]})
    each = found("rows kept apart", SOUND, bad=bad)
    assert each.matters
    assert each.rows == 1
    assert each.value == pytest.approx(1 / 241)
    assert each.says == "1 of 241 rows could not be used: the reward is NaN (1)."
    assert each.examples == ("a.jsonl, line 3: the reward is NaN",)


def test_prompts_with_fewer_draws():
    each = found("prompts with fewer draws", [*SOUND, [1.0, 2.0]])
    assert each.matters
    assert (each.prompts, each.rows) == (1, 2)
    assert each.examples == ("'prompt 30' (2)",)
    assert "most=2" in each.remedy


def test_prompts_that_repeat():
    each = found("prompts that repeat", SOUND[:3], prompts=["Say it.", "say  it. ", "Other"])
    assert each.matters
    assert each.prompts == 2
    assert each.examples == ("'Say it.'", "'say it. '")
    # The draws of the first stand in two places; if all do, the file goes round.
    apart = found("prompts that repeat", SOUND[:3, :2], rows=[[1, 6], [2, 3], [4, 5]])
    assert apart.prompts == 1
    assert apart.says.endswith("1 come again in another place of the file, where their draws were put together.")
    assert not found("prompts that repeat", SOUND[:3, :2], rows=[[1, 4], [2, 5], [3, 6]]).matters
    assert not found("prompts that repeat", SOUND[:3, :2], rows=[[1, 1], [2, 2], [3, 3]]).matters


def test_repeated_responses():
    texts = [[f"{prompt} {draw // 2}" for draw in range(8)] for prompt in range(30)]
    each = found("repeated responses", np.repeat(SOUND[:, ::2], 2, axis=1), texts)
    assert each.matters
    assert (each.value, each.rows, each.prompts) == (0.5, 120, 30)
    assert each.examples[0] == "'0 0' (2 times), row 1"
    # The same text to another prompt is no repetition.
    assert found("repeated responses", SOUND, [[f"{draw}" for draw in range(8)]] * 30).rows == 0
    # Nor are equal rewards of copies ties to speak of.
    assert not found("ties", np.repeat(SOUND[:, ::2], 2, axis=1), texts).matters


def test_one_response_with_several_rewards():
    texts = [["same", "same", "a", "a"], ["b", "c", "d", "e"]]
    each = found("one response, several rewards", [[1.0, 2.0, 3.0, 3.0 + 1e-9], [1.0, 2.0, 3.0, 4.0]], texts)
    assert each.matters
    assert (each.rows, each.prompts, each.value) == (2, 1, 0.5)
    assert each.examples == ("'same' (1 apart), row 1",)


def test_ties_and_prompts_of_one_reward():
    rewards = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 2, 3]]
    each = found("ties", rewards)
    assert each.matters
    assert each.value == pytest.approx((2 + 6) / 18)
    constant = found("prompts with one reward only", rewards)
    assert constant.matters
    assert (constant.prompts, constant.rows) == (1, 4)
    assert constant.examples == ("'prompt 1'",)
    assert found("prompts with one reward only", [[1.0], [2.0]]).prompts == 0


def test_a_reward_that_saturates():
    each = found("a reward that saturates", np.minimum(SOUND, 0.0))
    assert each.matters
    share = np.mean(SOUND >= 0)
    assert f"{percent(share)} of the rewards are the largest (0)" in each.says
    assert each.prompts == np.sum(np.mean(SOUND >= 0, axis=1) >= 0.5)
    assert not found("a reward that saturates", [[1.0, 2.0, 3.0]]).matters
    assert found("a reward that saturates", SOUND[:, :2]).prompts == 0  # one of two is the best
    assert found("a reward that saturates", [[0.0] * 5, [0.0, 0.0, 0.0, 0.0, 1.0]]).prompts == 0  # alike is not best


def test_prompts_with_one_draw():
    each = found("prompts with one draw", SOUND[:, :1])
    assert each.matters
    assert each.prompts == 30
    some = found("prompts with one draw", [[1.0], *SOUND[:20]])
    assert not some.matters
    assert some.prompts == 1


def test_empty_responses():
    each = found("empty responses", SOUND, responses=[[" ", "\n", *"abcdef"]] * 30)
    assert each.matters
    assert each.value == 0.25
    assert each.rows == 60


def test_a_reward_that_follows_length():
    texts = [["a" * length for length in RNG.permutation(8) + 1] for _ in range(30)]
    lengths = np.array([[len(text) for text in mine] for mine in texts])
    each = found("a reward that follows length", lengths + SOUND, texts)
    assert each.matters
    assert each.value > 0.8
    assert "(characters)" in each.says
    assert found("a reward that follows length", -lengths + SOUND, texts).value < -0.8
    assert not found("a reward that follows length", SOUND, [["a"] * 8] * 30).matters


def test_log_probabilities_that_cannot_be():
    logs = np.full((30, 8), -5.0)
    logs[0, 0], logs[1, 1], logs[2] = 0.1, np.nan, -1.0
    each = found("log-probabilities that cannot be", SOUND, log_probs=logs)
    assert each.matters
    assert "1 log-probabilities are unknown or not finite, 1 are above 0, and for 2 prompts" in each.says
    assert (each.rows, each.prompts) == (8 + 8 + 1, 3)
    # Twice the same response is one.
    same = found("log-probabilities that cannot be", [[1.0] * 4], [["a"] * 4], log_probs=[[-0.5] * 4])
    assert not same.matters
    assert not found("log-probabilities that cannot be", SOUND).matters


def test_shares_in_words():
    assert [percent(share) for share in (0, 1e-5, 0.0123, 0.5, 1)] == [
        "0 %",
        "less than 0.01 %",
        "1.2 %",
        "50 %",
        "100 %",
    ]

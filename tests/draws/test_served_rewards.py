"""Rewards from servers: what is sent and taken, what is refused, and that nothing computed is lost."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from small_server import serving

from bonlib.draws import gather
from bonlib.draws.budget import Budget, BudgetError
from bonlib.draws.http import Server, ServerError
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.served import ServedSampler
from bonlib.draws.served_rewards import Judge, ServedReward
from bonlib.draws.store import SampleStore
from bonlib.models.responses import Responses

SETTINGS = SamplingSettings(6)
PROMPTS = ["a", "b"]


class Letters:
    """Draws as many different responses as are asked for."""

    fingerprint = name = "letters"

    def sample(self, prompts, settings, *, seed):
        texts = [f"{'x' * (each % 50 + 1)} {each}" for each in seed]
        return Responses(texts, np.zeros((len(texts), 1), np.int32), np.zeros(len(texts)), np.zeros(len(texts)))


@pytest.fixture(autouse=True)
def little_is_kept_together(monkeypatch):
    monkeypatch.setattr(gather, "TOGETHER", 0.02)


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path)


@pytest.fixture
def draws(store):
    return store.draw(Letters(), PROMPTS, 50, SETTINGS, seed=0)


def lengths(path, body, call):
    return {"rewards": [len(response) for response in body["responses"]]}


def test_the_small_json_gives_a_number_each_and_none_is_asked_for_twice(store, draws):
    with serving(lengths) as server:
        reward = ServedReward(Server(server.url, concurrency=2), batch_size=8)
        rewards = store.score(reward, draws)
        assert len(server.asked) == 13
        np.testing.assert_array_equal(store.score(reward, draws), rewards)
        assert len(server.asked) == 13
    assert {path for path, _ in server.asked} == {"/v1"}
    assert server.asked[0][1].keys() == {"prompts", "responses"}
    assert rewards.tolist() == [[len(text) for text in texts] for texts in draws.texts]


def test_what_was_scored_before_an_error_is_kept(store, draws):
    def answer(path, body, call):
        return (400, "no more") if call > 5 else lengths(path, body, call)

    with serving(answer) as server:
        reward = ServedReward(Server(server.url, concurrency=1), batch_size=8)
        with pytest.raises(ServerError, match="no more"):
            store.score(reward, draws)
        server.answer, before = lengths, len(server.asked)
        rewards = store.score(reward, draws)
    assert sum(len(body["responses"]) for _, body in server.asked[before:]) == 60
    assert rewards.tolist() == [[len(text) for text in texts] for texts in draws.texts]


def test_vllms_classifiers_and_cross_encoders():
    def classify(path, body, call):
        rows = [{"index": i, "probs": [0.0, float(len(text))]} for i, text in enumerate(body["input"])]
        return {"data": rows[::-1]}

    def score(path, body, call):
        pairs = enumerate(zip(body["text_1"], body["text_2"], strict=True))
        return {"data": [{"index": i, "score": len(one) - len(two)} for i, (one, two) in pairs]}

    with serving(classify) as server:
        url = server.url.removesuffix("/v1")
        reward = ServedReward(url, "judge", kind="classify", label=1, extra={"use_activation": False})
        assert reward.score(["ab", "c"], ["d", "ef"]).tolist() == [3.0, 3.0]
        body = {"model": "judge", "input": ["abd", "cef"], "use_activation": False}
        assert server.asked == [("/classify", body)]
        with pytest.raises(ServerError, match=r"the classifier has 2 outputs: give label"):
            ServedReward(url, "judge", kind="classify").score(["ab"], ["d"])
        with pytest.raises(ServerError, match=r"holds no rewards .IndexError.*is it a server of kind='classify'"):
            ServedReward(url, "judge", kind="classify", label=2).score(["ab"], ["d"])
    with serving(score) as server:
        reward = ServedReward(server.url.removesuffix("/v1"), kind="score")
        assert reward.score(["ab", "c"], ["d", "ef"]).tolist() == [1.0, -1.0]
        assert server.asked[0][0] == "/score"


GARBAGE = {
    "no rewards": ({"scores": [1.0, 2.0]}, r"holds no rewards \(KeyError: 'rewards'\).*kind='json'"),
    "a list": ([1.0, 2.0], "holds no rewards"),
    "too few": ({"rewards": [1.0]}, "returned .* for 2 responses, the first to prompt 'a'"),
    "words": ({"rewards": ["good", "bad"]}, "the reward of prompt 'a', response 'x' is 'good'; it must be one number"),
    "none": ({"rewards": [1.0, None]}, "the reward of prompt 'a', response 'y' is None"),
    "NaN": ({"rewards": [1.0, math.nan]}, "gave nan to 1 of 2 responses, the first to prompt 'a', response 'y'"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_reward_is_named(case):
    answer, message = GARBAGE[case]
    with serving(lambda *_: answer) as server, pytest.raises(ValueError, match=message):
        ServedReward(server.url).score(["a", "a"], ["x", "y"])


def test_rewards_are_known_by_the_model_and_how_it_is_asked():
    url = "http://one/v1"
    models = [
        ServedReward(url),
        ServedReward(url, "m"),
        ServedReward(url, "m", kind="score"),
        ServedReward("http://two"),
    ]
    models += [ServedReward(url, "m", kind="classify", label=label) for label in (0, 1)]
    prints = {model.fingerprint for model in models}
    assert len(prints) == 6
    assert ServedReward("http://two", "m").fingerprint == models[1].fingerprint


class Oracle:
    """Answers questions as `answer(question, settings, seed)` does, and notes them."""

    fingerprint = name = "oracle"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def sample(self, prompts, settings, *, seed):
        self.asked.append((prompts, settings, seed))
        texts = [self.answer(*each) for each in zip(prompts, [settings] * len(seed), seed, strict=True)]
        return Responses(texts, np.zeros((len(texts), 1), np.int32), np.zeros(len(texts)), np.zeros(len(texts)))


TEMPLATE = "How good is {response} as an answer to {prompt}, from 0 to {10}?"


def test_a_judge_is_asked_greedily_and_its_last_number_counts():
    oracle = Oracle(lambda question, *_: f"Of 3 points I give -{len(question)}.5 of them")
    rewards = Judge(oracle, TEMPLATE).score(["{response}", "b"], ["{prompt} \\1", "d"])
    ((questions, settings, _),) = oracle.asked
    assert questions[0] == "How good is {prompt} \\1 as an answer to {response}, from 0 to {10}?"
    assert rewards.tolist() == [-len(question) - 0.5 for question in questions]
    assert settings.top_k == 1


def test_an_answer_without_a_number_in_range_is_asked_for_again():
    def answer(question, settings, seed):
        return "I cannot say" if settings.top_k == 1 and "bad" in question else "Score: 11 or rather 7 (of 10)"

    oracle, kept = Oracle(answer), []
    judge = Judge(oracle, TEMPLATE, parse=r"rather (\d+)", least=0, most=10)
    judge.score_each(["a"] * 3, ["good", "bad", "fine"], keep=lambda *part: kept.append(part))
    assert [places.tolist() for places, _ in kept] == [[0, 2], [1]]
    assert [rewards.tolist() for _, rewards in kept] == [[7.0, 7.0], [7.0]]
    assert oracle.asked[1][1].plain  # at temperature 1, where another seed gives another answer
    assert oracle.asked[1][2] != oracle.asked[0][2][1:2]


def test_a_response_that_cannot_be_judged_is_named_and_the_others_are_kept(store, draws):
    hard = draws.texts[1, 3]
    oracle = Oracle(lambda question, *_: "It is\nfine" if hard in question else str(len(question)))
    with pytest.raises(ValueError, match="oracle gave no number from -inf to inf to 1 responses in 3 tries") as caught:
        store.score(Judge(oracle, TEMPLATE), draws)
    assert f"the first to prompt 'b', response {hard!r}: it said 'It is\\nfine'. Change template" in str(caught.value)
    oracle.answer, oracle.asked = lambda question, *_: "5", []
    rewards = store.score(Judge(oracle, TEMPLATE, tries=1), draws)
    assert [len(prompts) for prompts, *_ in oracle.asked] == [1]
    assert rewards[1, 3] == 5.0


def test_a_served_judge_keeps_what_it_said_before_the_budget_ended(store, draws):
    def judge(path, body, call):
        text = f"{len(body['messages'][0]['content'])}/100"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"total_tokens": 10, "completion_tokens": 4}}

    with serving(judge) as server:
        sampler = ServedSampler(Server(server.url, budget=Budget(max_calls=30)), "m", chat=True)
        with pytest.raises(BudgetError, match="max_calls"):
            store.score(Judge(sampler, "{response}", parse=r"(\d+)/"), draws)
        sampler = ServedSampler(Server(server.url), "m", chat=True)
        rewards = store.score(Judge(sampler, "{response}", parse=r"(\d+)/"), draws)
    assert len(server.asked) == 100
    assert server.asked[0][1]["temperature"] == 0.0
    assert rewards.tolist() == [[len(text) for text in texts] for texts in draws.texts]


def test_a_judge_is_known_by_model_question_and_how_it_is_read():
    oracle = Oracle(str)
    other = SimpleNamespace(fingerprint="other", sample=None)
    judges = [Judge(oracle, "{response}"), Judge(other, "{response}"), Judge(oracle, "{response}?")]
    judges += [Judge(oracle, "{response}", parse="x"), Judge(oracle, "{response}", least=0.0)]
    assert len({judge.fingerprint for judge in judges}) == 5
    assert Judge(oracle, "{response}", tries=9).fingerprint == judges[0].fingerprint


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="kind is 'tei'; it must be one of json"):
        ServedReward("http://one", kind="tei")
    with pytest.raises(ValueError, match=r"template is 'How good'; it must be a text with \{prompt\} and \{response\}"):
        Judge(Oracle(str), "How good")
    with pytest.raises(ValueError, match=r"parse is '\('; it must be a regular expression: missing \)"):
        Judge(Oracle(str), "{response}", parse="(")
    with pytest.raises(ValueError, match=r"least is 5\.0, most is 5\.0; most must be larger"):
        Judge(Oracle(str), "{response}", least=5.0, most=5.0)
    with pytest.raises(ValueError, match=r"sampler is 'gpt'; give ServedSampler\("):
        Judge("gpt", "{response}")

"""Draws from servers: what is asked, what is made of the answers, and that nothing bought is lost or bought twice."""

import _thread
import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from small_server import MODEL, completion, serving, slowly
from tqdm import tqdm

from bonlib.draws import gather
from bonlib.draws.budget import Budget, BudgetError
from bonlib.draws.http import Server, ServerError
from bonlib.draws.rewards import CutPenalty, FunctionReward
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.served import ServedSampler
from bonlib.draws.store import SampleStore, check_draws
from bonlib.estimates import best_of_n_kl
from bonlib.models.responses import UNKNOWN, UNKNOWN_END

PROMPTS = [f"prompt {i}" for i in range(5)]
SETTINGS = SamplingSettings(6)
LENGTH = FunctionReward(lambda prompt, response: float(len(response)), name="length")
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def little_is_kept_together(monkeypatch):
    monkeypatch.setattr(gather, "TOGETHER", 0.02)


def sampler_of(server, budget=None, concurrency=4, retries=0, **options):
    options = {"seeded": True, **options}
    return ServedSampler(Server(server.url, budget=budget, concurrency=concurrency, retries=retries), **options)


def seeds_of(server):
    return [(body["prompt"], body["seed"]) for _, body in server.asked]


def test_the_store_asks_only_for_what_it_lacks(tmp_path):
    store = SampleStore(tmp_path)
    with serving() as server:
        few = store.draw(sampler_of(server), PROMPTS[:2], 4, SETTINGS, seed=0)
        assert len(server.asked) == len(set(seeds_of(server))) == 8  # each draw has a seed of its own
        more = store.draw(sampler_of(server), PROMPTS, 6, SETTINGS, seed=0)
        assert len(server.asked) == len(set(seeds_of(server))) == 30
        again = store.draw(sampler_of(server, model=MODEL), PROMPTS, 6, SETTINGS, seed=0)
        assert len(server.asked) == 30
    np.testing.assert_array_equal(more.texts[:2, :4], few.texts)
    np.testing.assert_array_equal(again.texts, more.texts)
    np.testing.assert_allclose(more.log_probs, -6 * math.log(26))
    assert (again.lengths == 6).all()
    assert store.score(LENGTH, again).tolist() == [[6.0] * 6] * 5
    offline = ServedSampler("http://127.0.0.1:1/v1", MODEL, kind="openai")  # moved, and not there: not needed either
    np.testing.assert_array_equal(store.draw(offline, PROMPTS, 6, SETTINGS, seed=0).texts, more.texts)


def test_where_draws_have_no_seeds_those_of_a_prompt_come_by_few_requests(tmp_path):
    with serving() as server:
        draws = SampleStore(tmp_path).draw(sampler_of(server, seeded=None), PROMPTS, 20, SETTINGS, seed=0)
    assert sorted(body["n"] for _, body in server.asked) == [4] * 5 + [16] * 5
    assert len(set(draws.texts.ravel())) == 100


def test_what_a_server_gives_of_several_is_kept_and_the_rest_asked_for():
    def miserly(path, body, call):
        answer = completion(body)
        return {**answer, "choices": answer["choices"][: max(1, body.get("n", 1) // 2)]}

    with serving(miserly) as server:
        responses = sampler_of(server, seeded=False).sample(["a"] * 11 + ["b"], SETTINGS, seed=0)
    assert len(responses) == len(set(responses.texts)) == 12
    assert sorted(body.get("n", 1) for _, body in server.asked) == [1, 1, 2, 3, 6, 11]


def test_an_error_in_the_middle_costs_nothing_that_was_paid_for(tmp_path):
    store = SampleStore(tmp_path)
    with serving(lambda path, body, call: (400, "no more") if call > 20 else completion(body)) as server:
        with pytest.raises(
            ServerError, match=r"status 400, 'no more': .* asked was the model 'letters'; .*\['letters'\]"
        ):
            store.draw(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0)
        refused, server.answer = len(server.asked) - 20, lambda path, body, call: completion(body)
        assert store.held(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0).sum() == 20
        draws = store.draw(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0)
        assert len(server.asked) == 40 + refused
        undisturbed = SampleStore(tmp_path / "other").draw(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0)
    np.testing.assert_array_equal(draws.texts, undisturbed.texts)


# An interrupt that falls between `open` and its `with` leaves the file to Python, which closes it and says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_waits_for_what_is_under_way_and_keeps_it(tmp_path, capsys):
    def answer(path, body, call):
        if call == 6:
            _thread.interrupt_main()
        return slowly(0.3)(path, body, call)

    store = SampleStore(tmp_path)
    with serving(answer) as server:
        with pytest.raises(KeyboardInterrupt):
            store.draw(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0)
        asked = len(server.asked)
        assert 6 <= asked < 16
        assert store.held(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0).sum() == asked
    assert re.search("interrupted: [1-4] requests are under way; interrupt again", capsys.readouterr().err)


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path):
    """At most what arrived within a fraction of a second, and what was under way, is bought again."""

    def work():
        tqdm.set_lock(threading.RLock())  # a forked one would keep its parent waiting if killed while it holds it
        SampleStore(tmp_path).draw(sampler_of(server), PROMPTS, 24, SETTINGS, seed=0)

    store, kept = SampleStore(tmp_path), []
    with serving(slowly(0.05)) as server:
        for kill in range(3):
            child = fork.Process(target=work, daemon=True)
            child.start()
            while len(server.asked) < 30 * (kill + 1):
                time.sleep(0.01)
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kept.append(int(store.held(sampler_of(server), PROMPTS, 24, SETTINGS, seed=0).sum()))
            assert len(server.asked) - kept[-1] <= len(kept) * (4 + 4 * 0.5 / 0.05)
        draws = store.draw(sampler_of(server), PROMPTS, 24, SETTINGS, seed=0)
        assert 0 < kept[0] < kept[1] < kept[2] < 120
        assert len(set(seeds_of(server))) == 120
        before = len(server.asked)
        server.answer = slowly(0)
        undisturbed = SampleStore(tmp_path / "other").draw(sampler_of(server), PROMPTS, 24, SETTINGS, seed=0)
    print(f"kept after each kill {kept}, bought twice {before - 120} of 120")
    np.testing.assert_array_equal(draws.texts, undisturbed.texts)


def test_a_budget_stops_the_store_and_more_of_it_goes_on(tmp_path):
    store, budget = SampleStore(tmp_path), Budget(max_calls=13)
    with serving() as server:
        with pytest.raises(BudgetError, match="max_calls of the budget is 13; 13 calls are made: what came is kept"):
            store.draw(sampler_of(server, budget), PROMPTS, 8, SETTINGS, seed=0)
        assert store.held(sampler_of(server), PROMPTS, 8, SETTINGS, seed=0).sum() == len(server.asked) == 13
        store.draw(sampler_of(server, Budget(max_calls=27)), PROMPTS, 8, SETTINGS, seed=0)
        assert len(server.asked) == 40


def test_the_key_stands_nowhere_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-that-nobody-may-see-0123456789")
    with serving(lambda path, body, call: completion(body, texts=[f"I say {key}!"])) as server:
        sampler = sampler_of(server, log_probs="none")
        draws = SampleStore(tmp_path).draw(sampler, PROMPTS, 1, SamplingSettings(40), seed=0)
        assert all(headers["Authorization"] == f"Bearer {key}" for headers in server.headers)
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert key.encode() not in everything
    assert key not in repr(sampler) + sampler.name + sampler.fingerprint + repr(draws)
    assert set(draws.texts.ravel()) == {"I say [key]!"}


def answered(choice, settings=SETTINGS, usage=None, **options):
    """The response that is made of a choice."""
    with serving(lambda *_: {"choices": [choice], "usage": usage}) as server:
        return sampler_of(server, **options).sample(["a"], settings, seed=0)


def pairs(*tokens):
    return {"tokens": list(tokens), "token_logprobs": [-1.0] * len(tokens), "top_logprobs": None}


def content(*tokens, first=None):
    rows = [{"token": token, "logprob": -1.0, "id": first and first + i} for i, token in enumerate(tokens)]
    return {"content": rows}


NO = [UNKNOWN] * 2
COMPLETIONS = {
    "vLLM": ({"text": "ab", "finish_reason": "stop", "token_ids": [7, 8, 0], "logprobs": pairs("a", "b", "</s>")},
             [7, 8, 0], -3.0),
    "llama.cpp": ({"text": "ab", "finish_reason": "stop", "logprobs": content("a", "b", "", first=7)}, [7, 8, 9], -3.0),
    "the end token unsaid": ({"text": "ab", "finish_reason": "stop", "logprobs": pairs("a", "b")}, None, math.nan),
    "cut": ({"text": "ab", "finish_reason": "length", "logprobs": pairs("a", "b")}, NO, -2.0),
    "one unsaid": ({"text": "ab", "finish_reason": "length",
                    "logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, -1.0]}}, NO, math.nan),
    "no log-probabilities": ({"text": "ab", "finish_reason": "length"}, [-1], math.nan),
    "ids alone": ({"text": "ab", "finish_reason": "length", "token_ids": [7, 8]}, [7, 8], math.nan),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPLETIONS)
def test_what_a_server_says_of_tokens_is_taken_and_nothing_is_guessed(case):
    choice, tokens, log_prob = COMPLETIONS[case]
    response = answered(choice)
    assert response.texts.tolist() == ["ab"]
    np.testing.assert_equal(response.log_probs, [log_prob])
    np.testing.assert_equal(response.sampling_log_probs, [log_prob])
    assert response.token_ids[0].tolist() == (tokens or [UNKNOWN, UNKNOWN_END])


def test_a_server_that_counts_tokens_says_whether_all_are_there():
    choice, usage = {"text": "ab", "finish_reason": "stop", "logprobs": pairs("a", "b")}, {"completion_tokens": 3}
    response = answered(choice, usage=usage)
    assert response.token_ids.tolist() == [[UNKNOWN, UNKNOWN, UNKNOWN_END]]
    assert math.isnan(response.log_probs[0])
    assert not response.are_cut([0])[0]
    assert answered({**choice, "finish_reason": "length"}, usage={"completion_tokens": 2}).are_cut([0])[0]
    assert answered({"text": "ab", "finish_reason": "stop"}, usage=usage).lengths.tolist() == [3]


def test_of_a_conversation_the_message_is_the_response():
    choice = {
        "message": {"role": "assistant", "content": "ab"},
        "finish_reason": "length",
        "logprobs": content("a", "b"),
    }
    with serving(lambda *_: {"choices": [choice]}) as server:
        sampler = sampler_of(server, chat=True, system="Be brief.")
        response = sampler.sample(["Hello"], SETTINGS, seed=0)
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert body["logprobs"] is True
    assert (response.texts[0], response.log_probs[0], response.lengths[0]) == ("ab", -2.0, 2)


@pytest.mark.parametrize(
    ("said", "columns"), [("model", [-2, math.nan]), ("law", [math.nan, -2]), ("none", [math.nan] * 2)]
)
def test_away_from_temperature_one_the_user_says_of_what_the_log_probabilities_are(said, columns):
    choice = {"text": "ab", "finish_reason": "length", "logprobs": pairs("a", "b")}
    response = answered(choice, SamplingSettings(6, temperature=0.5), log_probs=said)
    np.testing.assert_equal([response.log_probs[0], response.sampling_log_probs[0]], columns)


def test_who_does_not_say_it_is_told():
    choice = {"text": "ab", "finish_reason": "length", "logprobs": pairs("a", "b")}
    with pytest.warns(UserWarning, match="not taken from letters, served: .* Say log_probs='model' or 'law'"):
        response = answered(choice, SamplingSettings(6, temperature=0.5))
    assert np.isnan([response.log_probs, response.sampling_log_probs]).all()


def test_stop_strings_end_a_response_whatever_the_server_does():
    law = SamplingSettings(6, stop=("X", "bX"))
    cut_there = {"text": "a", "finish_reason": "stop", "token_ids": [1, 2], "logprobs": pairs("a", "bX")}
    left_in = {"text": "abX", "finish_reason": "stop"}
    went_on = {"text": "abXcd", "finish_reason": "length", "logprobs": pairs("a", "bX", "c", "d")}
    assert answered(cut_there, law).log_probs.tolist() == [-2.0]
    kept = answered(left_in, law, usage={"completion_tokens": 3})
    assert (kept.texts[0], kept.lengths[0]) == ("a", 3)
    went = answered(went_on, law)
    assert (went.texts[0], went.log_probs[0], went.token_ids[0].tolist()) == ("a", -2.0, [UNKNOWN, UNKNOWN_END])
    assert answered({**went_on, "logprobs": None}, law, usage={"completion_tokens": 4}).lengths.tolist() == [0]


BODIES = {
    "vllm": {"top_k": 0, "min_p": 0.1, "repetition_penalty": 1.0, "return_token_ids": True},
    "llamacpp": {"top_k": 0, "min_p": 0.1, "repeat_penalty": 1.0},
    "transformers": {"generation_config": '{"do_sample": true, "top_k": 0, "min_p": 0.1}'},
    "openai": {"min_p": 0.1},
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_request_says_the_whole_law_as_each_kind_of_server_takes_it(kind):
    law = SamplingSettings(6, temperature=0.7, top_p=0.9, min_p=0.1, stop=("X",))
    with serving() as server:
        sampler_of(server, kind=kind, log_probs="model", extra={"user": "me", "stop": None}).sample(
            ["a"], law, seed=[5]
        )
    asked = {"model": MODEL, "prompt": "a", "max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seed": 5, "logprobs": 1}
    assert server.asked[0][1] == {**asked, **BODIES[kind], "user": "me"}


def test_the_likeliest_token_is_asked_for_as_temperature_zero():
    with serving() as server:
        sampler_of(server, log_probs="none").sample(["a"], SamplingSettings(6, top_k=1), seed=0)
    assert server.asked[0][1]["temperature"] == 0.0
    assert "top_k" not in server.asked[0][1]


def test_draws_belong_to_a_model_and_how_it_is_asked_not_to_an_address():
    url, other = "http://one/v1", Server("https://two:99/v1", key="OTHER", timeout=3)
    prints = {
        ServedSampler(url, "a", **options).fingerprint
        for options in ({}, {"chat": True}, {"chat": True, "system": "s"}, {"extra": {"x": 1}})
    } | {ServedSampler(url, "b").fingerprint}
    assert len(prints) == 5
    assert ServedSampler(other, "a", kind="vllm", seeded=False).fingerprint in prints


GARBAGE = [
    {},
    [],
    {"choices": []},
    {"choices": None},
    {"choices": [{"text": None, "finish_reason": "stop"}]},
    {"choices": [{"text": "a"}]},
    {"choices": [{"text": "a", "finish_reason": "length", "logprobs": {"tokens": ["a"], "token_logprobs": []}}]},
    {"choices": [{"text": "a", "finish_reason": "length", "logprobs": pairs("a") | {"token_logprobs": [0.5]}}]},
    {"choices": [{"text": "a", "finish_reason": "length", "logprobs": pairs("a") | {"token_logprobs": ["x"]}}]},
    {"choices": [{"text": "a", "finish_reason": "length", "logprobs": pairs("a") | {"token_logprobs": [-math.inf]}}]},
    {"choices": [{"text": "a" * 99, "finish_reason": "length", "logprobs": pairs(*"a" * 99)}]},
    {"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"completion_tokens": "many"}},
    {"choices": [{"text": "a", "finish_reason": "length", "token_ids": ["a"]}]},
    {"choices": [{"text": "a", "finish_reason": "length", "token_ids": [-5]}]},
    {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]},
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: json.dumps(garbage)[:60])
def test_garbage_is_named_and_not_kept(tmp_path, garbage):
    store = SampleStore(tmp_path)
    with serving(lambda path, body, call: garbage if call > 5 else completion(body)) as server:
        with pytest.raises(
            ServerError, match=r"the answer is no completion \(.*is this a server of OpenAI's API\?"
        ) as caught:
            store.draw(sampler_of(server, concurrency=1), PROMPTS, 4, SETTINGS, seed=0)
        assert store.held(sampler_of(server), PROMPTS, 4, SETTINGS, seed=0).sum() == 5
    assert "\n" not in str(caught.value)


def test_the_model_is_the_only_one_or_named():
    with serving() as server:
        assert ServedSampler(server.url).model == MODEL
        assert ServedSampler(server.url).kind == "openai"
        with pytest.raises(ServerError, match=r"status 404.*ends in /v1; or give the model's name, and kind"):
            _ = ServedSampler(server.url.removesuffix("/v1")).model
        assert ServedSampler(server.url + "/other", "mine").kind == "openai"  # a server may have no list
    several = ServedSampler("http://one/v1")
    several.__dict__["_listed"] = {"a": "vllm", "b": "vllm"}
    with pytest.raises(ServerError, match=r"/models lists \['a', 'b'\]: give the name of one as model"):
        _ = several.model


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="kind is 'tgi'; it must be one of vllm"):
        ServedSampler("http://one/v1", kind="tgi")
    with pytest.raises(ValueError, match="log_probs is 'all'"):
        ServedSampler("http://one/v1", log_probs="all")
    with pytest.raises(ValueError, match="system is 'Be brief'; only a conversation begins with it: give chat=True"):
        ServedSampler("http://one/v1", system="Be brief")
    with pytest.raises(ValueError, match="prompts is"):
        ServedSampler("http://one/v1", "a").sample([], SETTINGS, seed=0)


def test_what_needs_tokens_or_log_probabilities_says_where_a_server_told_none(tmp_path, language_model):
    def silent(path, body, call):
        return completion(body, log_probs=False, usage=False)

    store = SampleStore(tmp_path)
    with serving(silent) as server:
        store.draw(sampler_of(server), PROMPTS, 4, SETTINGS, seed=0)
        draws = store.draw(sampler_of(server), PROMPTS, 4, SETTINGS, seed=0)  # as read from the store
    assert np.isnan(draws.log_probs).all()
    assert (draws.lengths == 0).all()
    rewards = store.score(LENGTH, draws)
    assert np.isfinite(best_of_n_kl(rewards, 2, responses=draws.texts)).all()  # by counting
    with pytest.raises(ValueError, match=r"did not tell each one's tokens and log-probability.*bon\.load"):
        check_draws(draws, language_model)
    penalty = CutPenalty(LENGTH, [0], penalty=1.0)
    with pytest.raises(ValueError, match=r"whether it was cut is not known\. Draw with seeded=True"):
        store.score(penalty, draws)

"""Real servers of the bundled models: what they say is ours, and killed in the middle they cost nothing.

`transformers serve` always; vLLM's server with `make test-vllm`, which has an environment of its own.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import torch

from bonlib.draws.budget import Budget
from bonlib.draws.http import Server, ServerError
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.served import ServedSampler
from bonlib.draws.served_rewards import ServedReward
from bonlib.draws.store import SampleStore, check_draws
from bonlib.models.loaded import load_classifier
from bonlib.models.places import locate
from bonlib.models.reading import response_log_probs
from bonlib.models.texts import token_ids

PROMPTS = ["The film", "I saw this with my mother"]
SETTINGS = SamplingSettings(16)
MODEL, CLASSIFIER = str(locate("imdb-gpt2-tiny")), str(locate("imdb-sentiment-tiny"))
VLLM = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--dtype", "float32", "--enforce-eager"]
VLLM += ["--served-model-name", "tiny", "--max-model-len", "256", "--model"]
COMMANDS = {
    "transformers": [sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu", MODEL],
    "vllm": [*VLLM, MODEL],
    "vllm's classifier": [*VLLM, CLASSIFIER],
}
with_vllm = pytest.mark.skipif(not os.environ.get("BONLIB_TEST_VLLM"), reason="`make test-vllm` runs it")
without_vllm = pytest.mark.skipif(bool(os.environ.get("BONLIB_TEST_VLLM")), reason="its server is another test")


class RealServer:
    """A server in a process of its own, at one port however often it is started."""

    def __init__(self, kind, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.kind, self.log, self.process = kind, log, None
        self.root = f"http://127.0.0.1:{self.port}"

    def start(self, *more):
        begun = time.monotonic()
        defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
        command = [*COMMANDS[self.kind], "--port", str(self.port), *more]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env={**defaults, **os.environ}, stdout=log, stderr=log, start_new_session=True
            )
        while True:
            try:
                if httpx.get(f"{self.root}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.1)
        print(f"{self.kind} started in {time.monotonic() - begun:.1f} s")
        return self

    def kill(self):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # vLLM's engine is a process of its own
            self.process.wait()


@pytest.fixture
def real(request, tmp_path):
    server = RealServer(request.param, tmp_path / "server.log")
    yield server
    server.kill()


def killed_and_started_again(real, store, sampler_with, count, *more):
    """Draw from a server that is killed in the middle and started again; return the draws."""
    sampler, budget = sampler_with(Budget()), Budget()

    def kill_in_the_middle():
        while store.held(sampler, PROMPTS, count, SETTINGS, seed=0).sum() < count // 4:
            time.sleep(0.05)
        real.kill()

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    with pytest.raises(ServerError, match=r"the answer broke off|no server can be reached") as caught:
        store.draw(sampler, PROMPTS, count, SETTINGS, seed=0)
    killer.join()
    kept, asked = int(store.held(sampler, PROMPTS, count, SETTINGS, seed=0).sum()), sampler.server.budget.calls
    print(f"killed: {asked} requests made, {kept} draws kept; {caught.value}")
    assert count // 4 <= kept < 2 * count
    assert asked - kept <= 2 * sampler.server.concurrency  # those under way, and one repetition of each
    real.start(*more)
    draws = store.draw(sampler_with(budget), PROMPTS, count, SETTINGS, seed=0)
    missing = 2 * count - kept
    print(f"started again: {budget.calls} requests for the {missing} draws that were missing, {budget.tokens} tokens")
    assert budget.calls == missing
    return draws


@without_vllm
@pytest.mark.parametrize("real", ["transformers"], indirect=True)
def test_transformers_serve(real, tmp_path, bundled_model):
    def sampler_with(budget, concurrency=2):
        server = Server(real.root + "/v1", concurrency=concurrency, retries=1, budget=budget)
        return ServedSampler(server, MODEL, kind="transformers")

    real.start()
    draws = killed_and_started_again(real, SampleStore(tmp_path / "store"), sampler_with, 12)
    assert len(set(draws.texts.ravel())) > 20  # drawn, where this server by itself would say the likeliest
    assert np.isnan(draws.log_probs).all()  # it tells none
    cut = draws.lengths == SETTINGS.max_new_tokens
    assert cut.mean() > 0.5
    told = [len(ids) for ids in token_ids(bundled_model.tokenizer, draws.texts[cut].tolist())]
    assert abs(np.mean(told) - SETTINGS.max_new_tokens) < 1.5  # begin token, or tokens that are read as others
    alone = sampler_with(None, concurrency=1)  # at once, requests disturb each other's seeds
    first, second = (alone.sample(PROMPTS, SETTINGS, seed=[3, 4]).texts.tolist() for _ in range(2))
    assert first == second


def law_log_probs(loaded, prompts, responses, temperature):
    """Log-probability of responses at a temperature, straight from the logits."""
    found = []
    for prompt, row in zip(prompts, responses.token_ids, strict=True):
        said = row[row >= 0].tolist()
        ids = token_ids(loaded.tokenizer, [prompt])[0] + said
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids])).logits[0, -len(said) - 1 : -1].double() / temperature
        found.append(float(logits.log_softmax(-1)[torch.arange(len(said)), said].sum()))
    return np.array(found)


@with_vllm
@pytest.mark.parametrize("real", ["vllm"], indirect=True)
def test_vllm_serve(real, tmp_path, bundled_model):
    def sampler_with(budget=None, **options):
        return ServedSampler(Server(real.root + "/v1", concurrency=4, retries=1, budget=budget), **options)

    def worst(name, said, ours):
        off = np.abs(said - ours)
        print(
            f"{name}: {len(off)} responses, {off.max():.1e} nats off at most, {(off / np.abs(ours)).max():.1e} of them"
        )
        return (off / np.abs(ours)).max()

    real.start()
    assert (sampler_with().model, sampler_with().kind) == ("tiny", "vllm")
    asked, warm = PROMPTS * 20, SamplingSettings(16, temperature=0.7, stop=(".",))
    responses = sampler_with(log_probs="model").sample(asked, warm, seed=0)
    ours = response_log_probs(bundled_model, asked, responses)
    assert worst("the model's, drawn at temperature 0.7", responses.log_probs, ours) < 1e-4
    assert np.isnan(responses.sampling_log_probs).all()
    assert all("." not in text for text in responses.texts)

    store = SampleStore(tmp_path / "store")
    draws = killed_and_started_again(real, store, sampler_with, 200, "--logprobs-mode", "processed_logprobs")
    asked = [prompt for prompt in PROMPTS for _ in range(200)]
    ours = np.concatenate(
        [response_log_probs(bundled_model, [p] * 200, r) for p, r in zip(PROMPTS, draws.responses, strict=True)]
    )
    assert worst("temperature 1", draws.log_probs.ravel(), ours) < 1e-4
    check_draws(draws, bundled_model)  # so that they may be learned from
    again = SampleStore(tmp_path / "other").draw(sampler_with(), PROMPTS, 200, SETTINGS, seed=0)
    same = (again.texts == draws.texts).mean()
    print(f"drawn again from the same seeds: {same:.1%} of the texts are the same")
    assert same > 0.98  # in another batch rounding may turn a token
    assert len(set(sampler_with(seeded=False).sample([PROMPTS[0]] * 40, SETTINGS, seed=0).texts)) > 35

    responses = sampler_with(log_probs="law").sample(PROMPTS * 20, warm, seed=0)
    ours = law_log_probs(bundled_model, PROMPTS * 20, responses, 0.7)
    assert worst("the law's, at temperature 0.7", responses.sampling_log_probs, ours) < 1e-4


@with_vllm
@pytest.mark.parametrize("real", ["vllm's classifier"], indirect=True)
def test_vllm_serves_a_classifier(real):
    real.start()
    prompts, responses = ["The film"] * 3, [" was great", " was terrible.", " was"]
    ours = SentimentReward(load_classifier(CLASSIFIER, device="cpu", dtype="float32")).score(prompts, responses)
    theirs = ServedReward(real.root, "tiny", kind="classify", label=1).score(prompts, responses)
    print(f"a classifier's: {np.abs(theirs - ours).max():.1e} off at most")
    np.testing.assert_allclose(theirs, ours, atol=1e-5)

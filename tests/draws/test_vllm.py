"""What holds of the vLLM sampler alone; test_samplers.py holds what every sampler must do."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.store import SampleStore
from bonlib.draws.vllm import VllmSampler

with_vllm = pytest.mark.skipif(not os.environ.get("BONLIB_TEST_VLLM"), reason="`make test-vllm` runs it")


def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[vllm\]'.*make test-vllm.*TransformersSampler"):
        VllmSampler("imdb-gpt2-tiny")


@pytest.fixture(scope="module")
def sampler():
    sampler = VllmSampler("imdb-gpt2-tiny", dtype="float32", engine={"enforce_eager": True})
    yield sampler
    sampler.close()


@with_vllm
def test_the_store_keeps_its_draws_and_asks_for_no_more(sampler, tmp_path, monkeypatch):
    store, prompts, settings = SampleStore(tmp_path), ["The film", "My mother"], SamplingSettings(8)
    draws = store.draw(sampler, prompts, 32, settings, seed=0)
    assert draws.texts.shape == (2, 32)
    assert len(set(draws.texts.ravel())) > 50
    rewards = store.score(FunctionReward(lambda prompt, response: len(response), name="length"), draws)
    assert np.isfinite(rewards).all()
    monkeypatch.setattr(sampler, "sample", None)
    again = store.draw(sampler, prompts, 32, settings, seed=0)
    np.testing.assert_array_equal(again.texts, draws.texts)


@with_vllm
def test_a_response_may_fill_the_context(sampler):
    room = sampler.context - len(sampler.tokenizer("The film")["input_ids"])
    responses = sampler.sample(["The film"] * 2, SamplingSettings(room, temperature=0.7, top_p=0.9), seed=0)
    assert responses.lengths.max() <= room
    assert (responses.sampling_log_probs > responses.log_probs).all()  # what is likely was made likelier


@with_vllm
def test_bad_settings_and_models_are_named(sampler):
    with pytest.raises(ValueError, match=r"temperature is 0\.001; vLLM"):
        sampler.sample(["The film"], SamplingSettings(4, temperature=0.001), seed=0)
    with pytest.raises(FileNotFoundError, match="neither one of the workbook's"):
        VllmSampler("imdb-gpt3")


@with_vllm
def test_a_fingerprint_says_engine_and_format():
    code = """
from bonlib.draws.vllm import VllmSampler
print(VllmSampler("imdb-gpt2-tiny", dtype="{}", engine={{"enforce_eager": True}}).fingerprint)
"""
    prints = [
        subprocess.run([sys.executable, "-c", code.format(dtype)], capture_output=True, text=True, check=True).stdout
        for dtype in ("float32", "float32", "bfloat16")
    ]
    assert prints[0] == prints[1] != prints[2]

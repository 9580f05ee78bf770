"""A loaded model: its fingerprint, context, end tokens, device and number format."""

import json
import shutil

import numpy as np
import pytest
import torch
import zoo

from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.loaded import load_classifier, load_language_model, pick_device, pick_dtype
from bonlib.models.reading import response_log_probs


def test_a_fingerprint_tells_weights_and_formats_apart(language_model_folder):
    first, again = (load_language_model(language_model_folder, device="cpu") for _ in range(2))
    half = load_language_model(language_model_folder, device="cpu", dtype="bfloat16")
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != half.fingerprint
    other = load_language_model(language_model_folder, device="cpu")
    other.tokenizer(["a call", "pads and truncates"], padding=True, truncation=True, max_length=4)
    assert other.fingerprint == first.fingerprint
    other.tokenizer.add_tokens(["extra"])
    assert other.fingerprint != first.fingerprint
    for name, value in (("n_head", 4), ("layer_norm_epsilon", 1e-3)):
        tweaked = load_language_model(language_model_folder, device="cpu")
        setattr(tweaked.model.config, name, value)
        assert tweaked.fingerprint != first.fingerprint
    ended = load_language_model(language_model_folder, device="cpu")
    ended.model.generation_config.eos_token_id = [0, 5]
    assert ended.fingerprint != first.fingerprint
    samplers = TransformersSampler(first, batch_size=4), TransformersSampler(first, batch_size=8)
    assert samplers[0].fingerprint != samplers[1].fingerprint


def test_devices_and_formats():
    assert pick_device("cpu") == "cpu"
    assert pick_device() in ("cuda", "mps", "cpu")
    assert pick_dtype("auto", "cpu") == torch.float32
    assert pick_dtype("auto", "cuda") == torch.bfloat16
    with pytest.raises(ValueError, match="device is 'tpu'"):
        pick_device("tpu")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        pick_dtype("int8", "cpu")


def test_the_papers_architectures_go_through_the_same_code(papers_folders):
    policy, judge = papers_folders
    sampler = TransformersSampler(load_language_model(policy, device="cpu"))
    responses = sampler.sample(["the film", "a bad film and"], SamplingSettings(8), seed=0)
    assert len(responses) == 2
    rewards = SentimentReward(load_classifier(judge, device="cpu")).score(
        ["the film", "a bad film and"], responses.texts
    )
    assert ((rewards > 0) & (rewards < 1)).all()


def test_devices_and_formats_are_taken_in_every_form(monkeypatch):
    assert pick_device(torch.device("cpu")) == "cpu"
    assert pick_dtype(torch.bfloat16, "cpu") == pick_dtype("torch.bfloat16", "cpu") == torch.bfloat16
    for wanted in (0, np.int64(0), "cuda:0", torch.device("cuda", 0)):
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match=r"device is .*this machine has .*cpu: use one of them or 'auto'"):
                pick_device(wanted)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(wanted) for wanted in (0, np.int64(1), torch.device("cuda", 1), "cuda")] == [
        "cuda:0", "cuda:1", "cuda:1", "cuda",
    ]  # fmt: skip
    for wanted in (2, -1, True, None, 1.0, "cuda:x", "cuda:7", "", "gpu"):
        with pytest.raises(ValueError, match="device is"):
            pick_device(wanted)
    for wanted in (torch.float16, "int8", None, 16, torch.int64):
        with pytest.raises(ValueError, match=r"dtype is .*'auto', 'float32' or 'bfloat16'"):
            pick_dtype(wanted, "cpu")


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text"])
def test_positions_that_begin_behind_the_padding_are_not_counted(kind, tmp_path):
    zoo.save(zoo.classifier(kind, num_labels=1), tmp_path, closed=True)
    loaded = load_classifier(tmp_path, device="cpu")
    ids = torch.full((1, loaded.context + 1), 7)
    with torch.no_grad():
        loaded.model(ids[:, :-1])
        if kind != "longformer":  # which fills up to its window
            with pytest.raises((IndexError, RuntimeError)):
                loaded.model(ids)


def test_contexts_are_found_by_any_name():
    from types import SimpleNamespace

    from bonlib.models.loaded import LoadedModel

    contexts = {
        "gpt2": 128, "mpt": 128, "llama": 128, "bloom": 2**63 - 1, "mamba": 2**63 - 1, "gptj": 128, "whisper": 128,
        "opt": 128, "openai-gpt": 128, "ctrl": 128,
    }  # fmt: skip
    for kind, context in contexts.items():
        assert LoadedModel(zoo.causal(kind), SimpleNamespace(), kind).context == context, kind


def test_a_response_ends_at_the_end_tokens_of_both(language_model_folder, tmp_path):
    shutil.copytree(language_model_folder, tmp_path / "model")
    file = tmp_path / "model" / "generation_config.json"
    for named, ends in ((5, [5, 0]), ([5, 7], [5, 7, 0]), ([0, 5, 10**6], [0, 5]), (None, [0])):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": named}))
        loaded = load_language_model(tmp_path / "model", device="cpu")
        assert loaded.end_token_ids == ends
        drawn = TransformersSampler(loaded).sample(["a"] * 64, SamplingSettings(12), seed=0)
        inside = drawn.token_ids[:, :-1][drawn.token_ids[:, 1:] >= 0]
        assert not np.isin(inside, ends).any()


def test_padding_and_ends_may_be_missing_or_unknown(language_model, language_model_folder, tmp_path):
    from transformers import AutoTokenizer

    from bonlib.draws.samplers import SamplingSettings, TransformersSampler

    prompts = ["a", "the film was", "nobody"]
    for name, change in {
        "beyond": lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"}),
        "none": lambda tokenizer: [setattr(tokenizer, f"{kind}_token", None) for kind in ("pad", "eos", "bos")],
    }.items():
        for file in language_model_folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(language_model_folder)
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path)
        loaded = load_language_model(tmp_path, device="cpu")
        assert loaded.pad_token_id < loaded.vocabulary, name
        assert loaded.end_token_ids == [0], name
        drawn = TransformersSampler(loaded).sample(prompts, SamplingSettings(6), seed=0)
        np.testing.assert_array_equal(
            drawn.token_ids, TransformersSampler(language_model).sample(prompts, SamplingSettings(6), seed=0).token_ids
        )
        np.testing.assert_allclose(response_log_probs(loaded, prompts, drawn), drawn.log_probs, atol=1e-4)

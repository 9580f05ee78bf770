"""What cannot be right is refused when it is loaded: in one line, by name, with what to take instead."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.loaded import load_classifier, load_language_model, pick_device, pick_dtype
from bonlib.models.reading import response_log_probs
from bonlib.models.ways import UnfitModelError

TEXT_MODELS = {"gemma3", "qwen3_5"}  # of several modes, which read plain text as well


def one_line(raised):
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 900
    return message


@pytest.mark.parametrize("name", sorted(zoo.REFUSED.keys() - TEXT_MODELS))
def test_what_cannot_draw_is_refused(name, tmp_path):
    zoo.REFUSED[name](tmp_path / name)
    with pytest.raises(UnfitModelError, match=r"(For\w+|Model|MTModel|LMHead\w+)\b.*: take |; take ") as raised:
        load_language_model(tmp_path / name, device="cpu")
    one_line(raised)


@pytest.mark.parametrize("name", sorted(zoo.REFUSED_CLASSIFIERS))
def test_what_cannot_judge_is_refused(name, tmp_path):
    zoo.REFUSED_CLASSIFIERS[name](tmp_path / name)
    with pytest.raises(UnfitModelError, match=r"For\w+\b.*(: take |; take )") as raised:
        load_classifier(tmp_path / name, device="cpu")
    one_line(raised)


@pytest.mark.parametrize("name", sorted(TEXT_MODELS & zoo.REFUSED.keys()))
def test_a_model_of_several_modes_is_one_of_text(name, tmp_path):
    zoo.REFUSED[name](tmp_path / name)
    loaded = load_language_model(tmp_path / name, device="cpu")
    assert loaded.context == 128
    prompts = ["the film was", "a"]
    drawn = TransformersSampler(loaded).sample(prompts, SamplingSettings(6), seed=0)
    np.testing.assert_allclose(response_log_probs(loaded, prompts, drawn), drawn.log_probs, atol=1e-3)
    for prompt, row, log_prob in zip(prompts, drawn.token_ids, drawn.log_probs, strict=True):
        ids, row = loaded.encode([prompt], 6)[0], row[row >= 0].tolist()
        logits = zoo.plain_logits(loaded.model, ids + row).log_softmax(-1)[len(ids) - 1 : -1]
        assert logits.gather(1, torch.tensor(row)[:, None]).sum() == pytest.approx(log_prob, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_decoder_that_waits_for_an_encoder_is_refused(kind, tmp_path):
    zoo.save(zoo.causal(kind, add_cross_attention=True), tmp_path)
    with pytest.raises(UnfitModelError, match=r"attend to an encoder's output.*take a decoder without"):
        load_language_model(tmp_path, device="cpu")


def test_the_bundled_model_is_no_judge():
    with pytest.raises(UnfitModelError, match=r"lacks the weights 'score\.weight': its head was never trained"):
        SentimentReward(load_classifier("imdb-gpt2-tiny"))
    fresh = load_classifier("imdb-gpt2-tiny", device="cpu", outputs=2)  # asked for, it may be new
    assert fresh.model.config.num_labels == 2


def test_weights_that_are_missing_are_named(llama_folder, classifier_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    weights = load_file(file)
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        save_file({key: weight for key, weight in weights.items() if key != name}, file, metadata={"format": "pt"})
        with pytest.raises(UnfitModelError, match=rf"LlamaForCausalLM lacks the weights '{re.escape(name)}'"):
            load_language_model(tmp_path / "llama", device="cpu")
    save_file(weights, file, metadata={"format": "pt"})
    load_language_model(tmp_path / "llama", device="cpu")
    shutil.copytree(classifier_folder, tmp_path / "judge")
    file = tmp_path / "judge" / "model.safetensors"
    weights = load_file(file)
    weights.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(weights, file, metadata={"format": "pt"})
    for outputs in (None, 1):  # a new head is allowed, new layers are not
        with pytest.raises(UnfitModelError, match=r"lacks the weights 'transformer\.h\.0"):
            load_classifier(tmp_path / "judge", device="cpu", outputs=outputs)


def test_tied_weights_are_not_missing(language_model_folder):
    assert "lm_head.weight" not in load_file(language_model_folder / "model.safetensors")
    load_language_model(language_model_folder, device="cpu")


def test_weights_of_another_shape_are_named(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text()) | {"intermediate_size": 32}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"of shape \(64, 32\) in its weights, but \(32, 32\)|of shape \(32, 64\)"):
        load_language_model(tmp_path / "llama", device="cpu")


def test_weights_that_are_nonsense_are_refused(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UnfitModelError, match="returns NaN for a plain text"):
        load_language_model(tmp_path / "llama", device="cpu")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "mpt"])
def test_a_folder_without_a_tokenizer_is_named(kind, tmp_path):
    zoo.causal(kind).save_pretrained(tmp_path / kind)
    with pytest.raises(FileNotFoundError, match=rf"{kind}' has no tokenizer.*tokenizer\.save_pretrained") as raised:
        load_language_model(tmp_path / kind, device="cpu")
    one_line(raised)


def test_pickled_weights_stay_refused(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "llama" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors") as raised:
        load_language_model(tmp_path / "llama", device="cpu")
    one_line(raised)


def test_a_tokenizer_larger_than_its_model_is_refused(llama_folder, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(llama_folder, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<picture>"]})
    tokenizer.save_pretrained(tmp_path / "llama")
    loaded = load_language_model(tmp_path / "llama", device="cpu")  # such tokens no text has by chance
    assert loaded.pad_token_id < known == loaded.vocabulary
    with pytest.raises(ValueError, match=rf"prompts\[1\].*has the token '<picture>'.*knows only {known}"):
        loaded.encode(["a", "see <picture>"], 4)
    tokenizer.add_tokens(["wonderful"])
    tokenizer.save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"does not know, the first 'wonderful'.*resize_token_embeddings"):
        load_language_model(tmp_path / "llama", device="cpu")


def test_a_model_that_is_random_inside_is_refused(llama_folder, monkeypatch):
    from transformers import LlamaForCausalLM

    usual = LlamaForCausalLM.forward

    def noisy(self, *arguments, **options):
        output = usual(self, *arguments, **options)
        output.logits = output.logits + torch.randn_like(output.logits)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", noisy)
    with pytest.raises(UnfitModelError, match="LlamaForCausalLM says other things of the same text each time"):
        load_language_model(llama_folder, device="cpu")

    def failing(self, *arguments, **options):
        raise RuntimeError("pixel_values\nis needed")

    monkeypatch.setattr(LlamaForCausalLM, "forward", failing)
    with pytest.raises(UnfitModelError, match=r"cannot read a plain text \(RuntimeError: pixel_values is needed\)"):
        load_language_model(llama_folder, device="cpu")


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

"""Files that cannot be the model that is wanted are refused: in one line, by name, with what to take instead."""

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
from bonlib.models.loaded import load_classifier, load_language_model
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


def test_an_unreachable_hub_model_is_named_with_the_remedy():
    with pytest.raises(FileNotFoundError, match=r"'nobody/no-such-model' could not be loaded.*folder downloaded"):
        load_language_model("nobody/no-such-model")


def test_a_folder_without_weights_is_named(language_model_folder, tmp_path):
    for file in language_model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_language_model(tmp_path)

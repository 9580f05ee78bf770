"""A model whose numbers would mean nothing is refused when it is loaded."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bonlib.models.loaded import load_language_model
from bonlib.models.ways import UnfitModelError


def test_weights_that_are_nonsense_are_refused(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UnfitModelError, match="returns NaN for a plain text"):
        load_language_model(tmp_path / "llama", device="cpu")


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

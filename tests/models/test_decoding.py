"""Drawing leaves a model as it was, and a cache that cannot branch is found out."""

import copy

import pytest
import torch
import zoo

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models import decoding, ways
from bonlib.models.decoding import can_branch
from bonlib.models.loaded import LoadedModel

PROMPTS = ["the film", "so bad that we", "a", "nobody knows why"]


def test_what_a_model_keeps_from_drawing_does_not_stop_it_from_learning():
    """Tables that a model keeps are made without gradients when it draws first, and wanted with them later."""
    for name in ("gptj", "codegen", "bloom", "falcon-alibi", "recurrent_gemma"):
        model = zoo.CAUSAL[name]()
        sampler = TransformersSampler(LoadedModel(model.requires_grad_(False), zoo.tokenizer(), name))
        sampler.sample(PROMPTS, SamplingSettings(4), seed=0)
        policy = copy.deepcopy(model).requires_grad_(True)
        policy(torch.tensor([[5, 6, 7]]), use_cache=False).logits.sum().backward()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "qwen3_5_text", "jamba", "mamba", "recurrent_gemma"])
def test_a_cache_that_cannot_go_on_in_copies_is_found_out(name, monkeypatch):
    """Copies are compared with the plain pass over their texts, for each model anew."""
    monkeypatch.setattr(ways, "_remembered", lambda *_: None)
    monkeypatch.setattr(ways, "_remember", lambda *_: None)
    monkeypatch.setattr(ways, "_of_kind", {})
    assert can_branch(ways.proven(zoo.CAUSAL[name](), "branching", length=20)) == (name != "recurrent_gemma")
    monkeypatch.setattr(ways, "_of_kind", {})

    def mixed_up(keep):
        """Right as long as no row is named twice."""
        return lambda of, rows: keep(of, rows.flip(0) if len(rows.unique()) < len(rows) else rows)

    monkeypatch.setattr(decoding, "select_rows", mixed_up(decoding.select_rows))
    monkeypatch.setattr(decoding.WrittenStep, "keep", mixed_up(decoding.WrittenStep.keep))
    model = zoo.CAUSAL[name]()
    assert not can_branch(ways.proven(model, "branching", length=20))
    assert can_branch(ways.proven(model, "drawing", length=20)) == (name != "recurrent_gemma")

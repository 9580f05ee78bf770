"""The next token is drawn from the law that was asked for, and drawing leaves the model as it was."""

import copy

import pytest
import torch
import zoo

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models import decoding, ways
from bonlib.models.decoding import Law, can_branch, inverse_cdf, next_token_probs
from bonlib.models.loaded import LoadedModel


def test_inverse_cdf_never_picks_what_cannot_be():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 1.0 - 2**-24])
    for block in (1, 2, 64):
        drawn, total = inverse_cdf(probs, uniforms, block)
        assert drawn.tolist() == [1, 1, 3, 3]
        assert total.tolist() == [1] * 4
        assert inverse_cdf(probs, torch.ones(4), block)[0].tolist() == [3] * 4


def test_inverse_cdf_draws_as_often_as_the_weights_say():
    weights = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) ** 8 * 7
    uniforms = (torch.arange(200_000) + 0.5) / 200_000
    drawn, _ = inverse_cdf(weights.expand(200_000, -1), uniforms)
    counts = torch.bincount(drawn, minlength=1000).double()
    expected = weights[0].double() / weights.double().sum() * 200_000
    assert (counts - expected).abs().max() < 2  # no noise: the uniform numbers are a grid
    assert (drawn.diff() >= 0).all()


def test_top_p_keeps_at_least_one_token():
    probs = next_token_probs(torch.tensor([[1.0, 3.0, 2.0]]), Law(top_p=1e-6))
    assert probs.tolist() == [[0.0, 1.0, 0.0]]


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

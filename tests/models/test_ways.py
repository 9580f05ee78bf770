"""Fast ways are compared with the plain pass before they are used, and what is found is kept for models of one kind."""

import copy
import inspect
import logging

import pytest
import torch
import zoo

from bonlib.models import decoding, reading, steps, ways
from bonlib.models.reading import response_logits, token_batch
from bonlib.models.ways import UnfitModelError, make_probe, proven


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """Let each test find out for itself, and keep that apart from what the user's cache has."""
    monkeypatch.setattr(ways, "_of_kind", {})
    monkeypatch.setattr(ways, "_said", set())
    monkeypatch.setattr(ways, "user_cache_path", lambda _: tmp_path)


def counted(monkeypatch, model):
    """How often a model is run from here on."""
    calls, forward = [], type(model).forward

    def run(self, *args, **options):
        calls.append(1)
        return forward(self, *args, **options)

    run.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), "forward", run)
    return calls


def test_what_is_found_is_kept_for_the_kind_and_on_disk(monkeypatch, tmp_path):
    model, twin, other = zoo.causal("llama"), zoo.causal("llama"), zoo.causal("llama", num_hidden_layers=3)
    calls = counted(monkeypatch, model)
    everything = set(ways.TASKS["drawing"].ways)
    assert proven(model, "drawing", length=20) == everything
    assert len(calls) > 4
    calls.clear()
    assert proven(model, "drawing", length=20) == proven(twin, "drawing", length=20) == everything
    assert not calls
    monkeypatch.setattr(ways, "_of_kind", {})  # another process
    assert proven(zoo.causal("llama"), "drawing", length=20) == everything
    assert not calls
    proven(other, "drawing", length=20)
    assert calls
    for file in (tmp_path / "ways").glob("*.json"):
        file.write_text("{damaged")
    monkeypatch.setattr(ways, "_of_kind", {})
    assert proven(zoo.causal("llama"), "drawing", length=20) == everything


def test_one_line_says_what_is_left_out_and_what_that_costs(caplog):
    with caplog.at_level(logging.WARNING, "bonlib"):
        for length in (20, 20, 40):
            proven(zoo.CAUSAL["mamba"](), "drawing", length=length)
        proven(zoo.causal("llama"), "drawing", length=20)
    (record,) = [record for record in caplog.records if record.name == "bonlib"]
    assert record.getMessage().startswith("MambaForCausalLM, drawing: right only without left (prompts of each length")


@pytest.mark.parametrize("window", [4, 16, 40, 300])
def test_a_window_is_seen_whatever_its_length(window):
    """Responses in one row are told apart by places, which a window counts otherwise."""
    overrides = {"sliding_window": window, "max_position_embeddings": 512}
    model = zoo.causal("mistral", **overrides).requires_grad_(False)
    prompt = torch.randint(5, 90, (window + 4,), generator=torch.Generator().manual_seed(1)).tolist()
    responses = [[5, 6, 7], [8, 9, 10, 11], [12, 13], [14, 15, 16]]
    batch = token_batch([prompt] * 4, responses, pad_id=0, device=torch.device("cpu"))
    found = torch.split(response_logits(model, batch).logits, [len(response) for response in responses])
    for response, logits in zip(responses, found, strict=True):
        want = zoo.plain_logits(model, prompt + response)[-len(response) - 1 : -1]
        torch.testing.assert_close(logits.double(), want, atol=1e-4, rtol=1e-4)
    if window == 300:  # short texts do not come near it
        assert "rows" in proven(model, "responses", length=40)
    assert "rows" not in proven(model, "responses", length=window + 8)


def test_a_way_that_is_wrong_is_left_out(monkeypatch):
    """Someone loses the order of the rows: from then on each draw reads its prompt."""
    model = zoo.causal("gpt_neox").requires_grad_(False)

    def broken(cache, rows):
        for layer in cache.layers:
            layer.reorder_cache(rows.flip(0))

    monkeypatch.setattr(decoding, "select_rows", broken)
    kept = proven(model, "drawing", length=20)
    assert "shared" not in kept
    assert {"batch", "cache", "left", "products"} <= kept


def test_a_written_step_is_compared_with_and_without_sharing(monkeypatch):
    """Someone breaks what draws of one prompt share, which short probes would not do: the model's own step is taken."""
    model = zoo.causal("llama").requires_grad_(False)
    assert "written" in proven(model, "drawing", length=20)
    turned = steps.WrittenStep._by_row
    monkeypatch.setattr(steps.WrittenStep, "_by_row", lambda self, table: turned(self, table).flip(0))
    monkeypatch.setattr(ways, "_of_kind", {})
    monkeypatch.setattr(ways, "_remembered", lambda *_: None)
    kept = proven(copy.deepcopy(model), "drawing", length=20)
    assert "written" not in kept
    assert {"batch", "cache", "shared", "left", "products"} <= kept


def test_what_a_step_cannot_be_written_for_is_proved_without_it():
    model = zoo.causal("llama").requires_grad_(False)
    assert "written" in proven(model, "drawing", length=20)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    kept = proven(model, "drawing", length=20)
    assert "written" not in kept
    assert "shared" in kept


def test_gradients_are_compared_too(monkeypatch):
    model = zoo.causal("llama").requires_grad_(True)
    assert "needed" in proven(model, "learning", length=20)
    plain = reading._response_logits

    def without_gradient(model, batch, ways, states=False):
        found = plain(model, batch, ways, states)
        return found._replace(logits=found.logits + 0.5 * (found.logits - found.logits.detach())) if ways else found

    monkeypatch.setattr(reading, "_response_logits", without_gradient)
    monkeypatch.setattr(ways, "_of_kind", {})
    monkeypatch.setattr(ways, "_remembered", lambda *_: None)
    assert proven(copy.deepcopy(model), "learning", length=20) == frozenset()


def test_a_head_that_says_nothing_proves_nothing():
    model = zoo.CLASSIFIERS["gpt2"]()
    model.score.weight.data.zero_()
    assert proven(model, "judging", length=20) == frozenset()
    model.score.weight.data.normal_()
    assert "pooled" in proven(model, "judging", length=20)


def test_what_no_way_makes_right_is_refused():
    """LongRoPE takes other frequencies from some length on, and a text that grows beyond it was begun with the old."""
    model = zoo.CAUSAL["phi3-longrope-crossed"]()
    uniforms, law = torch.rand(1, 30, generator=torch.Generator().manual_seed(0)), decoding.Law()
    with pytest.raises(UnfitModelError, match="Phi3ForCausalLM does not come to the same numbers by drawing"):
        decoding.decode(model, [[5, 6]], law, end_ids=[2], pad_id=0, uniforms=uniforms)


def test_dropout_is_off_while_ways_are_tried_and_on_afterwards():
    model = zoo.causal("gpt2", resid_pdrop=0.5).train()
    assert "rows" in proven(model, "learning", length=20)
    assert all(module.training for module in model.modules())


def test_a_probe_is_free_of_special_tokens():
    model = zoo.causal("llama", pad_token_id=0, bos_token_id=1, eos_token_id=[2, 3])
    probe = make_probe(model, ((2, 3), (60, 4), (60, 5)))
    assert {token for text in probe.texts for token in text}.isdisjoint({0, 1, 2, 3})
    assert probe.prompts[1] == probe.prompts[2] != probe.prompts[0]

"""Responses read in batches, against a pass over each alone."""

import copy

import numpy as np
import peft
import pytest
import torch

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models import reading
from bonlib.models.reading import response_log_probs, response_logits, response_states, token_batch


def random_llama():
    """A causal model with another way of telling positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, initializer_range=0.4,
        )
    ).eval()  # fmt: skip


def test_log_probs_are_those_of_the_draw(language_model):
    prompts = ["the film", "a", "the film", "I saw this with my mother"] * 3
    responses = TransformersSampler(language_model).sample(prompts, SamplingSettings(12, temperature=0.7), seed=0)
    for batch_size in (1, 5, 64):
        found = response_log_probs(language_model, prompts, responses, batch_size=batch_size)
        np.testing.assert_allclose(found, responses.log_probs, atol=1e-4)
    with pytest.raises(ValueError, match="3 prompts for 12 responses"):
        response_log_probs(language_model, prompts[:3], responses)


def test_large_batches_give_their_memory_back_and_small_ones_keep_it(language_model, monkeypatch):
    responses = TransformersSampler(language_model).sample(["a"] * 6, SamplingSettings(4), seed=0)
    given_back = []
    monkeypatch.setattr(reading, "release_freed_memory", lambda: given_back.append(1))
    small = response_log_probs(language_model, ["a"] * 6, responses, batch_size=2)
    assert not given_back
    monkeypatch.setattr(reading, "LARGE", 1)
    np.testing.assert_array_equal(response_log_probs(language_model, ["a"] * 6, responses, batch_size=2), small)
    assert len(given_back) == 3


@pytest.mark.parametrize("dressed", [False, True], ids=["bare", "adapter"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prompt_that_is_there_once_for_several_responses_changes_nothing(language_model, kind, dressed):
    model = copy.deepcopy(language_model.model) if kind == "gpt2" else random_llama()
    if dressed:
        config = peft.LoraConfig(
            target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, config).eval()
    long, short = [*range(10, 40)], [41, 42, 43]
    prompts, responses = [long, short, long, long, short], [[50], [51, 52], [53, 54, 55, 56], [50, 57, 58], [59]]
    together = token_batch(prompts, responses, pad_id=1, device=torch.device("cpu"))
    assert together.together.ids.shape == (2, 30 + 8)
    logits = response_logits(model, together).logits
    states, along = response_states(model, together), response_states(model, together, along=True)
    begin = 0
    for prompt, response, state, path in zip(prompts, responses, states, along, strict=True):
        alone = token_batch([prompt], [response], pad_id=1, device=torch.device("cpu"))
        assert alone.together is None
        found, begin = logits[begin : begin + len(response)], begin + len(response)
        torch.testing.assert_close(found, response_logits(model, alone).logits, atol=1e-5, rtol=1e-4)
        whole = model(torch.tensor([prompt + response]), output_hidden_states=True)
        torch.testing.assert_close(found, whole.logits[0, len(prompt) - 1 : -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state, whole.hidden_states[-1][0, -1], atol=1e-5, rtol=1e-4)
        path = path[: len(response) + 1]
        torch.testing.assert_close(path, whole.hidden_states[-1][0, len(prompt) - 1 :], atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_separate_texts(language_model):
    prompts, responses = [[*range(10, 40)]] * 4, [[50, 51], [52], [53, 54, 55], [56]]
    grads = []
    for parts in ([range(4)], [[i] for i in range(4)]):
        model = copy.deepcopy(language_model.model).double().requires_grad_(True)
        for part in parts:
            chosen = [prompts[i] for i in part], [responses[i] for i in part]
            batch = token_batch(*chosen, pad_id=1, device=torch.device("cpu"))
            response_logits(model, batch).logits.logsumexp(1).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


def test_short_prompts_of_long_responses_stay_as_they_are():
    batch = token_batch([[5, 6]] * 3, [[7] * 40, [8] * 40, [9] * 3], pad_id=1, device=torch.device("cpu"))
    assert (batch.apart.ids.shape, batch.together) == ((3, 42), None)


def test_a_row_has_as_many_responses_as_is_cheapest():
    one, other = [*range(7)], [*range(10, 17)]  # with all six behind one prompt, the other's row would be padding
    batch = token_batch([one] * 6 + [other] * 2, [[7] * 24] * 8, pad_id=1, device=torch.device("cpu"))
    assert batch.together.ids.shape == (4, 7 + 2 * 24)
    assert batch.together.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    far = token_batch([[5] * 300] * 16, [[7] * 600] * 16, pad_id=1, device=torch.device("cpu"))
    assert far.together is None  # attention over such rows would cost more than the prompts

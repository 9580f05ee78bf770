"""Texts read in batches with shared beginnings, against a pass over each text alone."""

import copy
import inspect

import numpy as np
import peft
import pytest
import torch

from bonlib.draws.rewards import ClassifierReward, SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.classifiers import scores
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import response_log_probs, response_logits, response_states, token_batch

TEXTS = [
    [5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 7, 11, 12, 13, 14],  # one head of three tokens
    [20, 21], [20, 22, 23],  # one of one token
    [30, 31, 32], [33],  # none
]  # fmt: skip
HEADS = [3, 3, 3, 1, 1, 2, 0]


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


@pytest.fixture(scope="module")
def llama(language_model, tmp_path_factory):
    """A causal model with another way of telling positions, and a head with one output."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_labels=1, pad_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    return LoadedModel(LlamaForSequenceClassification(config).eval(), language_model.tokenizer, "random llama")


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_text_gets_the_score_of_a_pass_alone(classifier, llama, kind, batch_size):
    model = (classifier if kind == "gpt2" else llama).model
    found = scores(model, TEXTS, HEADS, batch_size=batch_size, pad_id=1)
    for text, score in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            np.testing.assert_allclose(score, model(torch.tensor([text])).logits[0], atol=1e-5, rtol=1e-4)


def test_a_head_is_read_once(llama, monkeypatch):
    model, read_tokens = llama.model, []
    texts = [[*range(10, 40), 50 + i] for i in range(8)]
    scores(model, texts, [30] * 8, batch_size=8, pad_id=1)  # by now it is known what is right for this model
    forward = model.base_model.forward

    def counted(ids, **options):
        read_tokens.append(ids.numel())
        return forward(ids, **options)

    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model.base_model, "forward", counted)
    scores(model, texts, [30] * 8, batch_size=8, pad_id=1)
    assert read_tokens == [30, 8]  # the head, one token a text


def test_log_probs_are_those_of_the_draw(language_model):
    prompts = ["the film", "a", "the film", "I saw this with my mother"] * 3
    responses = TransformersSampler(language_model).sample(prompts, SamplingSettings(12, temperature=0.7), seed=0)
    for batch_size in (1, 5, 64):
        found = response_log_probs(language_model, prompts, responses, batch_size=batch_size)
        np.testing.assert_allclose(found, responses.log_probs, atol=1e-4)
    with pytest.raises(ValueError, match="3 prompts for 12 responses"):
        response_log_probs(language_model, prompts[:3], responses)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_reward_with_shared_prompts_is_that_of_a_pass_alone(llama, classifier, batch_size):
    prompts = ["the film", "a very bad film indeed and", "the film"] * 3
    responses = [f" was good {'and sad ' * i}" for i in range(9)]
    rewards = ClassifierReward(llama, batch_size=batch_size).score(prompts, responses)
    logits = SentimentReward(classifier, output="logit", batch_size=batch_size).score(prompts, responses)
    for prompt, response, reward, logit in zip(prompts, responses, rewards, logits, strict=True):
        ids = torch.tensor([llama.tokenizer(prompt + response)["input_ids"]])
        with torch.inference_mode():
            assert reward == pytest.approx(float(llama.model(ids).logits[0, 0]), abs=1e-4)
            negative, positive = classifier.model(ids).logits[0].tolist()
        assert logit == pytest.approx(positive - negative, abs=1e-4)


def test_a_token_that_spans_the_border_is_read_with_the_response(llama):
    """The prompt "the fil" ends inside a token of "the film", so its last token is not the text's."""
    prompts, responses = ["the fil"] * 4, ["m was", "m", "l", "m was good"]
    rewards = ClassifierReward(llama).score(prompts, responses)
    whole = ClassifierReward(llama).score_texts([p + r for p, r in zip(prompts, responses, strict=True)])
    np.testing.assert_allclose(rewards, whole, atol=1e-5)


def test_a_classifier_with_other_outputs_is_refused(classifier):
    with pytest.raises(ValueError, match="has 2 outputs; ClassifierReward takes a classifier with 1"):
        ClassifierReward(classifier)


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
    states = response_states(model, together)
    begin = 0
    for prompt, response, state in zip(prompts, responses, states, strict=True):
        alone = token_batch([prompt], [response], pad_id=1, device=torch.device("cpu"))
        assert alone.together is None
        found, begin = logits[begin : begin + len(response)], begin + len(response)
        torch.testing.assert_close(found, response_logits(model, alone).logits, atol=1e-5, rtol=1e-4)
        whole = model(torch.tensor([prompt + response]), output_hidden_states=True)
        torch.testing.assert_close(found, whole.logits[0, len(prompt) - 1 : -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state, whole.hidden_states[-1][0, -1], atol=1e-5, rtol=1e-4)


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


def test_short_prompts_stay_as_they_are():
    batch = token_batch([[5, 6]] * 3, [[7] * 10, [8] * 10, [9] * 3], pad_id=1, device=torch.device("cpu"))
    assert (batch.apart.ids.shape, batch.together) == ((3, 12), None)

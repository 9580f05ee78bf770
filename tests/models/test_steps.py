"""The step that is written out says what the plain pass says, whoever shares a prompt, and whoever has finished."""

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bonlib.models import steps
from bonlib.models.decoding import TASKS, follow, plain_logits
from bonlib.models.steps import WrittenStep, can_be_written
from bonlib.models.ways import make_probe

SMALL = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
WAYS = frozenset(TASKS["drawing"].ways)
PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [10, 11, 12, 13, 14], [8, 9], [5, 6, 7], [5, 6, 7]]
LENGTHS = [5, 2, 1, 4, 3, 20, 2]  # tokens of each response


def gpt2(**changes):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**sizes | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0} | changes))


MODELS = {
    "GPT-2": gpt2,
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "Llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "Mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
    "Qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms and biases begin at 1 and 0, which would hide them
                weight.add_(0.3 * torch.randn_like(weight))
    return model


@pytest.fixture
def responses():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 99, (length,), generator=generator).tolist() for length in LENGTHS]


def said_by(model, responses, ways=WAYS, sharing=0.0):
    said = [[] for _ in responses]

    def choose(logits, rows, step):
        for place, row in zip(rows.tolist(), logits, strict=True):
            said[place].append(row.float())
        tokens = torch.tensor([responses[place][step] for place in rows.tolist()])
        return tokens, torch.tensor([step + 1 < len(responses[place]) for place in rows.tolist()])

    follow(model, PROMPTS, choose, steps=max(LENGTHS), pad_id=0, ways=ways, sharing=sharing)
    return torch.cat([torch.stack(rows) for rows in said])


def said_plainly(model, responses):
    with torch.no_grad():
        texts = zip(PROMPTS, responses, strict=True)
        return torch.cat([plain_logits(model, p + r)[len(p) - 1 : -1] for p, r in texts])


@pytest.fixture
def counted(monkeypatch):
    """How many steps were written ones."""
    calls = []
    monkeypatch.setattr(
        WrittenStep, "_step", lambda self, tokens, step=WrittenStep._step: (calls.append(1), step(self, tokens))[1]
    )
    return calls


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sharing", [0, float("inf")], ids=["shared prompts", "copies"])
@pytest.mark.parametrize("ways", [WAYS, WAYS - {"products"}], ids=["packed", "plain products"])
def test_it_says_what_the_plain_pass_says(name, sharing, ways, responses, counted):
    model = made(name)
    torch.testing.assert_close(
        said_by(model, responses, ways, sharing), said_plainly(model, responses), rtol=1e-4, atol=1e-4
    )
    assert len(counted) == max(LENGTHS) - 1


@pytest.mark.parametrize("name", ["GPT-2", "Qwen2"])
@pytest.mark.parametrize("sharing", [0, float("inf")], ids=["shared prompts", "copies"])
def test_so_does_the_one_that_a_graph_is_recorded_of(name, sharing, responses, counted, monkeypatch):
    """It looks at the whole cache, and lets finished rows stay until half have gone; recording needs CUDA."""
    monkeypatch.setattr(steps, "RECORDED_ON", ("cpu",))
    model = made(name)
    torch.testing.assert_close(
        said_by(model, responses, sharing=sharing), said_plainly(model, responses), rtol=1e-4, atol=1e-4
    )
    assert len(counted) == max(LENGTHS) - 1


def test_a_probe_is_long_enough_for_the_one_that_a_graph_is_recorded_of(monkeypatch):
    monkeypatch.setattr(steps, "RECORDED_ON", ("cpu",))
    monkeypatch.setattr(steps.WrittenStep, "_replay", lambda *_: 1 / 0)  # as where recording fails
    entry, model = TASKS["drawing"], made("GPT-2")
    probe = make_probe(model, ((3, 4), (5, 2)))
    with pytest.raises(ZeroDivisionError):
        entry.fast(model, probe, WAYS)
    assert entry.fast(model, probe, WAYS - {"written"})


def test_an_adapter_is_part_of_it(responses, counted):
    model = get_peft_model(
        made("Llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    model.eval()
    torch.testing.assert_close(said_by(model, responses), said_plainly(model, responses), rtol=1e-4, atol=1e-4)
    assert counted


def test_other_models_are_left_alone():
    assert can_be_written(made("GPT-2"))
    assert not can_be_written(gpt2(activation_function="relu"))
    assert not can_be_written(gpt2(scale_attn_by_inverse_layer_idx=True))
    assert not can_be_written(zoo.CAUSAL["qwen3"]())
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_be_written(made("GPT-2"))
    heard = made("Llama")
    heard(torch.tensor([[5, 6]]), output_hidden_states=True)  # for which transformers leaves hooks of its own
    assert can_be_written(heard)
    heard.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not can_be_written(heard)


def test_windows_are_left_to_the_model(responses, counted):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)).eval()
    said_by(model, responses)
    assert not counted

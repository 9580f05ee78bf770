"""The faster operations for CPUs: the same numbers, and no trace afterwards."""

import subprocess
import sys

import pytest
import torch
import zoo

from bonlib.models.kernels import cpu_kernels
from bonlib.models.loaded import load_language_model


def test_the_faster_kernels_compute_the_same_and_leave_no_trace(language_model):
    model = language_model.model
    ids = torch.randint(0, 300, (5, 9), generator=torch.Generator().manual_seed(0))
    plain = [module.forward for module in model.modules()]
    with torch.inference_mode():
        want = model(ids).logits
        with cpu_kernels(model):
            assert any("forward" in vars(module) for module in model.modules())
            torch.testing.assert_close(model(ids).logits, want, atol=1e-5, rtol=1e-5)
    assert [module.forward for module in model.modules()] == plain
    with cpu_kernels(model):  # gradients are wanted: nothing may change
        assert not any("forward" in vars(module) for module in model.modules())


def test_the_faster_kernels_see_changed_weights_and_survive_an_error(language_model_folder):
    model = load_language_model(language_model_folder, device="cpu").model
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        for _ in range(2):
            with cpu_kernels(model):
                got = model(ids).logits
            torch.testing.assert_close(got, model(ids).logits, atol=1e-5, rtol=1e-5)
            model.transformer.h[0].mlp.c_fc.weight.mul_(-2)
        with torch.autocast("cpu", torch.bfloat16), cpu_kernels(model):
            assert model(ids).logits.isfinite().all()
        with pytest.raises(RuntimeError, match="stop"), cpu_kernels(model):
            raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("masked", [False, True])
def test_a_single_token_attends_as_pytorch_has_it(masked):
    """Two heads to each key, with and without a place that may not be seen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids, mask = torch.randint(50, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if masked else {}
    with torch.inference_mode():
        want = model(ids, **options).logits[:, -1]
        with cpu_kernels(model):
            start = {name: value[:, :8] for name, value in options.items()}
            cache = model(ids[:, :8], use_cache=True, **start).past_key_values
            if masked:
                options["position_ids"] = options["position_ids"][:, 8:]
            got = model(ids[:, 8:], past_key_values=cache, **options).logits[:, -1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["gpt_neo", "gptj", "mpt", "gpt_oss", "gemma2", "bloom", "llama"])
def test_attention_is_never_swapped_under_a_model_that_has_its_own(name):
    """Case 5: two texts, one padded on the left, inside and outside the faster kernels."""
    model = zoo.CAUSAL[name]()
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    mask = (ids > 0).long()
    options = {"attention_mask": mask}
    if name in ("gpt_neo", "gptj", "gpt_oss", "gemma2", "llama"):
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = model(ids, **options).logits[:, -1]
        with cpu_kernels(model):
            found = model(ids, **options).logits[:, -1]
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted by Linux")
def test_freed_memory_is_kept_until_it_is_released():
    """In a process of its own: the settings stay."""
    program = """
from pathlib import Path
import torch
from bonlib.models.kernels import keep_freed_memory, release_freed_memory
taken = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
keep_freed_memory()
begun = taken()
blocks = [torch.ones(size * 2**18) for size in range(20, 30)]
del blocks
kept = taken() - begun
release_freed_memory()
print(kept, taken() - begun)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 200  # megabytes, of 245
    assert left < 50

"""What makes PyTorch fast on a CPU where models are small and tokens come one at a time."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch

from bonlib.models.ways import inner


@contextmanager
def cpu_kernels(model: Any, ways: Container[str] = ("products", "attention")) -> Iterator[dict[Any, torch.Tensor]]:
    """Run a model, on a CPU and without gradients, with faster operations for the same formulas.

    Matrix products take weights laid out for oneDNN beforehand, which takes half the time of what PyTorch does by
    itself where its other library knows the processor less well; GPT-2's activation is one pass instead of eight; a
    single token attends by plain products, without copies of keys that several heads share. The layout is made anew
    each time, since weights may change between calls. Elsewhere, and where PyTorch lacks the operations, nothing
    happens. It yields the weights that were laid out, by module.

    Args:
        model: a `transformers` model; its layers are themselves again afterwards.
        ways: "products", "attention" or both: those that `bonlib.models.ways` has found right for this model.
    """
    if not _has_cpu_kernels(model):
        yield {}
        return
    packed: dict[Any, torch.Tensor] = {}
    replaced = _faster_forwards(model, packed) if "products" in ways else {}
    for module, forward in replaced.items():
        module.forward = forward
    swaps = "attention" in ways and _attends_as_told(model)
    try:
        with _attention(model, _one_token_attention()) if swaps else nullcontext():
            yield packed
    finally:
        for module in replaced:
            del module.forward  # the instance's; that of its class is there again


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Have a model on a CPU attend by plain products, whose gradient costs two thirds of the fused one's."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    with _attention(model, "eager") if on_cpu and _attends_as_told(model) else nullcontext():
        yield


def _attends_as_told(model: Any) -> bool:
    """Whether a model looks up its attention by the name in its configuration, as most do, and has the usual one."""
    told = getattr(inner(model), "_supports_attention_backend", False)
    return bool(told) and model.config._attn_implementation == "sdpa"


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    before, model.config._attn_implementation = model.config._attn_implementation, name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _has_cpu_kernels(model: Any) -> bool:
    weight = next(model.parameters())
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
        and not torch.is_grad_enabled()
    )


def _faster_forwards(model: Any, packed: dict[Any, torch.Tensor]) -> dict[Any, Any]:
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D

    forwards: dict[Any, Any] = {}
    for module in model.modules():
        if "forward" in vars(module):  # somebody else's, such as a hook of accelerate
            continue
        if type(module) in (torch.nn.Linear, Conv1D):
            weight = module.weight if type(module) is torch.nn.Linear else module.weight.t().contiguous()
            packed[module] = torch.ops.mkldnn._reorder_linear_weight(weight)
            forwards[module] = _packed_product(module, packed[module])
        elif type(module) is NewGELUActivation:
            forwards[module] = partial(torch.nn.functional.gelu, approximate="tanh")
    return forwards


def _packed_product(module: Any, packed: torch.Tensor) -> Any:
    def forward(inputs: torch.Tensor) -> Any:
        if inputs.dtype != module.weight.dtype:  # under autocast, which knows how to go on
            return type(module).forward(module, inputs)
        return torch.ops.mkldnn._linear_pointwise(inputs, packed, module.bias, "none", [], "")

    return forward


@functools.cache
def _one_token_attention() -> str:
    """Register an attention that differs from PyTorch's fused one for single tokens, and return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        rows, heads, length, width = query.shape
        if length > 1 or options.get("dropout"):
            return sdpa_attention_forward(module, query, key, value, mask, **options)
        # The heads that share keys are the rows of one product.
        query = query.view(rows, key.shape[1], heads // key.shape[1], width)
        scores = (query @ key.transpose(2, 3)).float() * (options.get("scaling") or width**-0.5)
        if mask is not None:
            mask = mask[..., : key.shape[2]]
            # Not −inf: padding in front of a text sees nothing at all, and must not become NaN.
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
        out = scores.softmax(-1).to(value.dtype) @ value
        return out.view(rows, 1, heads, value.shape[-1]), None

    name = "bonlib_one_token"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def has_bfloat16(device: str) -> bool:
    """Whether a device of this machine multiplies in bfloat16 faster than in float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    mkldnn = device == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory instead of handing it back to the system at once.

    On a CPU every step frees and takes tens of megabytes of activations; with glibc's defaults the kernel maps and
    clears those pages anew each time, which costs a small model a third of its speed. Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library (musl): its allocator has no such settings
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Hand memory that `keep_freed_memory` has kept back to the system.

    Where no two steps are of one size, what they freed is seldom of use to the next, and a process grows by gigabytes.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)

"""What sequence classifiers say of whole texts, read together in the ways that `bonlib.models.ways` has proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.models.caches import share_cache
from bonlib.models.decoding import mask_and_positions, padded
from bonlib.models.kernels import cpu_kernels
from bonlib.models.ways import TASKS, Probe, Task, Ways, class_of, inner, proven


@torch.no_grad()
def classifier_outputs(
    model: Any, texts: Sequence[Sequence[int]], common: Sequence[int], *, batch_size: int, pad_id: int
) -> NDArray[np.float64]:
    """Return what a sequence classifier says of texts, shape (B, outputs).

    Args:
        model: a `transformers` classifier, or one with an adapter.
        texts: B lists of token ids, none empty, special tokens included.
        common: (B,) tokens at the beginning of each text that others may begin with as well, fewer than it has.
        batch_size: texts a batch.
        pad_id: token to fill up with.
    """
    sizes = list(map(len, texts)) or [1]
    ways = proven(model, "judging", begin=min(sizes), length=max(sizes))
    return _outputs(model, texts, common, ways, batch_size=batch_size, pad_id=pad_id).cpu().double().numpy()


def _outputs(
    model: Any, texts: Sequence[Sequence[int]], common: Sequence[int], ways: Ways, *, batch_size: int, pad_id: int
) -> Tensor:
    found = torch.empty(len(texts), int(model.config.num_labels), device=next(model.parameters()).device)
    beginnings = [tuple(text[:size]) for text, size in zip(texts, common, strict=True)]
    times = Counter(beginnings)
    beginnings = [beginning if "beginnings" in ways and times[beginning] > 1 else () for beginning in beginnings]
    skipped = [len(beginning) for beginning in beginnings]
    rest = [list(text[skip:]) for text, skip in zip(texts, skipped, strict=True)]

    def like(place: int) -> tuple[int, int]:
        """Texts with one answer may be in one batch."""
        return (0 if "left" in ways else skipped[place], 0 if "right" in ways else len(rest[place]))

    # Texts of like length share a batch: padding would cost as much as reading.
    order = sorted(range(len(texts)), key=lambda i: (*like(i), skipped[i], beginnings[i], len(texts[i])))
    size = batch_size if "batch" in ways else 1
    for _, group in groupby(order, key=like):
        together = list(group)
        for start in range(0, len(together), size):
            places = together[start : start + size]
            batch = [beginnings[place] for place in places], [rest[place] for place in places]
            # For this batch alone: in between, the model is the caller's.
            with cpu_kernels(model, ways), _head_in_its_own_precision(model):
                try:
                    found[places] = _outputs_of(model, *batch, "pooled" in ways, pad_id).float()
                except (RuntimeError, IndexError, ValueError) as error:
                    raise ValueError(
                        f"{class_of(model)} cannot read text {places[0]}, of {len(texts[places[0]])} "
                        f"tokens ({str(error).splitlines()[0]}): leave it out, or take another reward model"
                    ) from error
    return found


def _outputs_of(
    model: Any, beginnings: list[tuple[int, ...]], rest: list[list[int]], pooled: bool, pad_id: int
) -> Tensor:
    device = next(model.parameters()).device
    ids, mask = padded(rest, pad_id, device)
    options: dict[str, Any] = {"attention_mask": mask}
    if not pooled:
        logits: Tensor = model(ids, **options).logits
        return logits
    layers = inner(model).base_model
    if any(beginnings):
        distinct = list(dict.fromkeys(beginnings))
        row_of = torch.tensor([distinct.index(beginning) for beginning in beginnings], device=device)
        before, before_mask = padded(distinct, pad_id, device, left=True)
        told = mask_and_positions(layers, before_mask, before.shape[1])
        cache = layers(before, use_cache=True, **told).past_key_values
        share_cache(cache, row_of, room=ids.shape[1])
        whole_mask = torch.cat([before_mask[row_of], mask], 1)
        options = {"past_key_values": cache, **mask_and_positions(layers, whole_mask, ids.shape[1])}
    states = layers(ids, **options).last_hidden_state
    return inner(model).score(states[torch.arange(len(rest)), mask.sum(1) - 1])


@contextmanager
def _head_in_its_own_precision(model: Any) -> Iterator[None]:
    """Have a head whose weights are of another precision than the layers' take states as it wants them."""
    head = getattr(inner(model), "score", None)
    weight = next(head.parameters(), None) if isinstance(head, torch.nn.Module) else None
    if head is None or weight is None or weight.dtype == next(model.parameters()).dtype:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, states: (states[0].to(weight.dtype),))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def _judged_plainly(model: Any, probe: Probe) -> list[Tensor]:
    device = next(model.parameters()).device
    with _head_in_its_own_precision(model):
        return [torch.cat([model(torch.tensor([text], device=device)).logits for text in probe.texts])]


@torch.no_grad()
def _judged(model: Any, probe: Probe, ways: Ways) -> list[Tensor]:
    common = list(map(len, probe.prompts))
    return [_outputs(model, probe.texts, common, ways, batch_size=len(common), pad_id=probe.pad_id)]


TASKS["judging"] = Task(
    ("batch", "right", "pooled", "beginnings", "left", "products", "attention"),
    _judged_plainly,
    _judged,
    lambda model, way: way not in ("pooled", "beginnings", "left") or hasattr(inner(model), "score"),
)

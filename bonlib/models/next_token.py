"""The law of the next token: from logits and settings, a draw of it and its log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Law(NamedTuple):
    """What the next token is drawn from: the fields of `SamplingSettings` that say so, which explains them."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def draw(logits: Tensor, uniforms: Tensor, law: Law) -> tuple[Tensor, Tensor, Tensor]:
    """Return a token a row, its log-probability under the model, and that under what was sampled from, each (B,)."""
    if law == Law():
        weights = logits.softmax(1, dtype=torch.float32)
        drawn, total = inverse_cdf(weights, uniforms)
        # Rounding can leave a certain token a little above probability one.
        log_prob = (weights.gather(1, drawn[:, None])[:, 0] / total).log().clamp(max=0.0)
        return drawn, log_prob, log_prob
    logits = logits.float()
    probs = next_token_probs(logits, law)
    drawn, total = inverse_cdf(probs, uniforms)
    chosen = drawn[:, None]
    log_prob = (logits.gather(1, chosen)[:, 0] - logits.logsumexp(1)).clamp(max=0.0)
    return drawn, log_prob, (probs.gather(1, chosen)[:, 0] / total).log().clamp(max=0.0)


def next_token_probs(logits: Tensor, law: Law) -> Tensor:
    """Return the next-token distribution that is sampled from, shape (B, V), from logits of that shape.

    The logits are divided by the temperature first; then of the tokens that are left, those beyond `top_k`, `top_p`
    and `min_p` are dropped, in this order.
    """
    # Less the highest, logits cannot overflow: towards temperature 0 the likeliest token is certain.
    probs = ((logits - logits.amax(1, keepdim=True)) / max(law.temperature, 1e-30)).softmax(1)
    if law.top_k:
        kept = probs.topk(min(law.top_k, probs.shape[1]), dim=1)
        probs = torch.zeros_like(probs).scatter(1, kept.indices, kept.values)
        probs = probs / probs.sum(1, keepdim=True)
    if law.top_p < 1:
        ranked, order = probs.sort(dim=1, descending=True)
        beyond = ranked.cumsum(1) - ranked >= law.top_p
        probs = torch.zeros_like(probs).scatter(1, order, ranked.masked_fill(beyond, 0.0))
        probs = probs / probs.sum(1, keepdim=True)
    if law.min_p:
        probs = probs.masked_fill(probs < law.min_p * probs.amax(1, keepdim=True), 0.0)
        probs = probs / probs.sum(1, keepdim=True)
    return probs


def inverse_cdf(weights: Tensor, uniforms: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
    """Return one index a row, drawn by inverting the cumulative distribution at the row's uniform number.

    One random number a row instead of one a vocabulary entry, which on a CPU costs more than the model itself. The
    sums are taken by blocks, and only the block that the number falls into is looked at closely.

    Args:
        weights: not negative, with a positive sum, shape (B, V).
        uniforms: in [0, 1), shape (B,).
        block: entries summed together.

    Returns:
        The indices and the sums of the weights, each of shape (B,).
    """
    rows, size = weights.shape
    if size % block:
        weights = torch.nn.functional.pad(weights, (0, block - size % block))
    blocks = weights.view(rows, -1, block)
    sums = blocks.sum(2)
    upto = sums.cumsum(1)
    total = upto[:, -1]
    wanted = (uniforms * total)[:, None]
    # u · total can round up to the total itself; the last block and entry with any weight is then the right one.
    found = torch.minimum(torch.searchsorted(upto, wanted, right=True), _last_positive(sums))
    before = torch.where(found > 0, upto.gather(1, (found - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, found[:, :, None].expand(-1, -1, block))[:, 0]
    entry = torch.searchsorted(inside.cumsum(1), wanted - before, right=True)
    return (found * block + torch.minimum(entry, _last_positive(inside)))[:, 0], total


def _last_positive(weights: Tensor) -> Tensor:
    """Place of the last entry above 0 in each row, shape (B, 1)."""
    places = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, places, 0).amax(1, keepdim=True)

"""Reading many texts at once: texts of like length together, and a beginning that several share only once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.lm.decoding import share_cache
from bonlib.lm.kernels import cpu_kernels
from bonlib.lm.models import LoadedModel, takes
from bonlib.lm.samplers import Responses, encode_prompts


class Read(NamedTuple):
    """What a model said to a batch of b texts.

    Attributes:
        places: (b,) which of the texts these are.
        skipped: (b,) tokens at the beginning of each text that were read for several at once, with no output.
        output: of the model, for the tokens after those; padded on the right.
    """

    places: NDArray[np.intp]
    skipped: NDArray[np.intp]
    output: Any


@torch.inference_mode()
def read(
    model: Any, texts: Sequence[Sequence[int]], heads: Sequence[int], *, batch_size: int, pad_id: int
) -> Iterator[Read]:
    """Run a model over texts in batches, in the order that suits it, and yield what it says.

    Args:
        model: a `transformers` model. If it is causal, a head that several texts have is read once.
        texts: B lists of token ids, none empty.
        heads: (B,) tokens at the beginning of each text that need no output, fewer than it has.
        batch_size: texts a batch.
        pad_id: token to fill up with.
    """
    beginnings = [tuple(text[:head]) for text, head in zip(texts, heads, strict=True)]
    times = Counter(beginnings)
    beginnings = [beginning if times[beginning] > 1 else () for beginning in beginnings]
    if any(beginnings) and not _keeps_a_cache(model):
        beginnings = [()] * len(texts)
    skipped = np.array([len(beginning) for beginning in beginnings])
    # Texts of like length share a batch: padding would cost as much as reading.
    order = sorted(range(len(texts)), key=lambda i: (skipped[i], beginnings[i], len(texts[i])))
    for start in range(0, len(order), batch_size):
        places = np.array(order[start : start + batch_size])
        rest = [list(texts[i][skipped[i] :]) for i in places]
        with cpu_kernels(model):  # for this batch alone: in between, the model is the caller's
            output = _read_batch(model, [beginnings[i] for i in places], rest, pad_id)
        yield Read(places, skipped[places], output)


def _read_batch(model: Any, beginnings: list[tuple[int, ...]], rest: list[list[int]], pad_id: int) -> Any:
    device = next(model.parameters()).device
    width = max(map(len, rest))
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in rest], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rest], device=device)
    longest = max(map(len, beginnings))
    if longest == 0:
        return model(ids, attention_mask=mask)
    distinct = list(dict.fromkeys(beginnings))
    row_of = torch.tensor([distinct.index(beginning) for beginning in beginnings], device=device)
    before = torch.tensor([[pad_id] * (longest - len(b)) + list(b) for b in distinct], device=device)
    before_mask = torch.tensor([[0] * (longest - len(b)) + [1] * len(b) for b in distinct], device=device)
    only_last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    cache = model(before, use_cache=True, **only_last, **_places(model, before_mask, longest)).past_key_values
    share_cache(cache, row_of, room=width)
    return model(ids, past_key_values=cache, **_places(model, torch.cat([before_mask[row_of], mask], 1), width))


def _places(model: Any, mask: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
    """Mask, and positions of the last `width` tokens for models that take them."""
    options = {"attention_mask": mask}
    if takes(model, "position_ids"):
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
    return options


def _keeps_a_cache(model: Any) -> bool:
    """Whether tokens see only what is before them, so that a beginning can be read by itself."""
    if not takes(model, "use_cache"):
        return False
    one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    return getattr(model(one, use_cache=True), "past_key_values", None) is not None


def response_log_probs(
    loaded: LoadedModel, prompts: Sequence[str], responses: Responses, *, batch_size: int = 64
) -> NDArray[np.float64]:
    """Return the log-probability of responses under a model, whoever drew them, shape (B,), nats.

    Args:
        loaded: a causal language model with the tokenizer that the responses were drawn with.
        prompts: of each response.
        responses: B of them; their tokens are read, the end token included.
        batch_size: responses a batch.

    Raises:
        ValueError: if there is not one prompt a response, or one does not fit the model's context.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"there are {len(prompts)} prompts for {len(responses)} responses; list one for each")
    heads = encode_prompts(loaded.tokenizer, loaded.context, prompts, responses.token_ids.shape[1])
    tails = [row[row >= 0].tolist() for row in responses.token_ids]
    texts = [head + tail for head, tail in zip(heads, tails, strict=True)]
    log_probs = np.empty(len(texts))
    first = [len(head) - 1 for head in heads]  # the prompt's last token says what comes next
    pad_id = loaded.tokenizer.pad_token_id
    for places, skipped, output in read(loaded.model, texts, first, batch_size=batch_size, pad_id=pad_id):
        for row, (place, count) in enumerate(zip(places, skipped, strict=True)):
            tail = torch.tensor(tails[place], device=output.logits.device)
            begin = first[place] - count
            logits = output.logits[row, begin : begin + len(tail)].float()
            log_probs[place] = logits.log_softmax(1).gather(1, tail[:, None]).cpu().double().sum()
    return log_probs


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Prompts and responses as tensors: prompts padded on the left, responses on the right.

    Attributes:
        ids: (B, W + T) token ids.
        mask: (B, W + T) 1 for a token, 0 for padding.
        responses: (B, T) the responses' tokens.
        response_mask: (B, T) likewise.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    responses: torch.Tensor
    response_mask: torch.Tensor


def token_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> TokenBatch:
    """Return prompts and responses, B lists of token ids each, as one padded batch."""
    width, length = max(map(len, prompts)), max(map(len, responses))
    before = [[pad_id] * (width - len(ids)) + list(ids) for ids in prompts]
    after = [list(ids) + [pad_id] * (length - len(ids)) for ids in responses]
    shown = [
        [0] * (width - len(p)) + [1] * (len(p) + len(r)) + [0] * (length - len(r))
        for p, r in zip(prompts, responses, strict=True)
    ]
    ids = torch.tensor([p + r for p, r in zip(before, after, strict=True)], device=device)
    mask = torch.tensor(shown, device=device)
    return TokenBatch(ids, mask, ids[:, width:], mask[:, width:])


def response_logits(model: Any, batch: TokenBatch, **options: Any) -> Any:
    """Return a causal model's output with `logits` for each response token alone, shape (B, T, V); gradients flow.

    Args:
        model: a `transformers` model.
        batch: what it reads.
        options: for the model, such as output_hidden_states.
    """
    length = batch.responses.shape[1]
    if takes(model, "logits_to_keep"):
        options["logits_to_keep"] = length + 1
    output = model(batch.ids, use_cache=False, **_places(model, batch.mask, batch.ids.shape[1]), **options)
    output.logits = output.logits[:, -length - 1 : -1].float()
    return output

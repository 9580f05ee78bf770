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
    """B prompts and responses as R rows of tokens; a prompt with several responses may have one row for all of them.

    Attributes:
        ids: (R, L) token ids: the prompt, padded on the left to one width, and then responses, one after another.
        mask: (R, L) 1 for a token, 0 for padding; or (R, 1, L, L), 0 where a token (row) sees another (column) and a
            very low number where not, if a row has several responses: none of them sees the others.
        position_ids: (R, L) places in the text that prompt and response make.
        responses: (B, T) the responses' tokens, padded on the right.
        response_mask: (B, T) 1 for a token, 0 for padding.
        rows: (B,) where each response is.
        columns: (B, T) where each of its tokens is in that row, in padding anywhere.
        width: of the prompts.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor
    responses: torch.Tensor
    response_mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    width: int

    @property
    def before(self) -> torch.Tensor:
        """(B, T) the column of the token before each: the prompt's last, and then the response's own."""
        first = torch.full_like(self.columns[:, :1], self.width - 1)
        return torch.cat([first, self.columns[:, :-1]], dim=1)

    def options(self, model: Any) -> dict[str, Any]:
        """Return what a model is told besides the tokens."""
        mask = self.mask if self.mask.ndim == 2 else self.mask.to(next(model.parameters()).dtype)
        options = {"attention_mask": mask, "use_cache": False}
        return options | ({"position_ids": self.position_ids} if takes(model, "position_ids") else {})


def token_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> TokenBatch:
    """Return prompts and responses, B lists of token ids each, as one padded batch.

    Where long prompts have several responses each, so that it saves a third of the tokens, they are there only once.
    """
    width, length = max(map(len, prompts)), max(map(len, responses))
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: row for row, prompt in enumerate(distinct)}
    shared, room = [place[tuple(prompt)] for prompt in prompts], [0] * len(distinct)
    for row, response in zip(shared, responses, strict=True):
        room[row] += len(response)
    once = 3 * len(distinct) * (width + max(room)) <= 2 * len(prompts) * (width + length)
    rows = shared if once else list(range(len(prompts)))
    heads, total = (distinct, width + max(room)) if once else (prompts, width + length)

    ids = torch.full((len(heads), total), pad_id)
    position_ids = torch.zeros((len(heads), total), dtype=torch.long)
    segments = torch.full((len(heads), total), -1)  # whose token it is: 0 the prompt's, k of the kth response, -1 none
    columns = torch.zeros((len(prompts), length), dtype=torch.long)
    padded, real = torch.full((len(prompts), length), pad_id), torch.zeros((len(prompts), length), dtype=torch.long)
    for row, head in enumerate(heads):
        ids[row, width - len(head) : width] = torch.tensor(head)
        position_ids[row, width - len(head) : width] = torch.arange(len(head))
        segments[row, width - len(head) : width] = 0
    ends = [width] * len(heads)
    for place_in_batch, (row, response) in enumerate(zip(rows, responses, strict=True)):
        begin, ends[row] = ends[row], ends[row] + len(response)
        ids[row, begin : ends[row]] = tokens = torch.tensor(response, dtype=torch.long)
        position_ids[row, begin : ends[row]] = len(prompts[place_in_batch]) + torch.arange(len(response))
        segments[row, begin : ends[row]] = place_in_batch + 1
        columns[place_in_batch, : len(response)] = torch.arange(begin, ends[row])
        padded[place_in_batch, : len(response)], real[place_in_batch, : len(response)] = tokens, 1
    mask = _seen(segments) if once else (segments >= 0).long()
    ids, mask, position_ids, padded, real, row_of, columns = (
        tensor.to(device) for tensor in (ids, mask, position_ids, padded, real, torch.tensor(rows), columns)
    )
    return TokenBatch(ids, mask, position_ids, padded, real, row_of, columns, width)


def _seen(segments: torch.Tensor) -> torch.Tensor:
    """The mask (R, 1, L, L) with which tokens see those before them of the prompt and of their own response."""
    before = torch.ones(2 * segments.shape[1:], dtype=torch.bool).tril()
    own = segments[:, :, None] == segments[:, None, :]
    seen = before & (own | (segments == 0)[:, None, :])
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.bfloat16).min)[:, None]


def response_logits(model: Any, batch: TokenBatch, **options: Any) -> Any:
    """Return a causal model's output with `logits` for each real response token alone, shape (N, V); gradients flow.

    Args:
        model: a `transformers` model, or one with an adapter.
        batch: what it reads; the N tokens are those of `batch.response_mask`, response by response.
        options: for the model, such as output_hidden_states.
    """
    real = batch.response_mask.bool()
    rows, columns = batch.rows[:, None].expand_as(batch.columns)[real], batch.before[real]
    if takes(model, "logits_to_keep"):
        options["logits_to_keep"] = batch.ids.shape[1] - batch.width + 1

    def needed(_: Any, states: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (states[0][rows, columns - (batch.ids.shape[1] - states[0].shape[1])],)

    # Only these states go through the output layer, which costs a small model as much as all the others. Of a slice
    # of states, PyTorch would even copy the vocabulary's weights for each text.
    hook = _inner(model).get_output_embeddings().register_forward_pre_hook(needed)
    try:
        output = model(batch.ids, **batch.options(model), **options)
    finally:
        hook.remove()
    output.logits = output.logits.float()
    return output


def response_states(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Return what the layers of a causal model end with at each response's last token, (B, H); gradients flow.

    Args:
        model: a classifier on a causal model, or one with an adapter.
        batch: what it reads.
    """
    states = _inner(model).base_model(batch.ids, **batch.options(model)).last_hidden_state
    last = batch.columns.gather(1, batch.response_mask.sum(1, keepdim=True) - 1)[:, 0]
    return states[batch.rows, last]


def _inner(model: Any) -> Any:
    """A model without the adapter around it; the adapter's layers are in it all the same."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

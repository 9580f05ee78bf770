"""Reading responses to prompts, many at once, with gradients or without: what a causal model says before each token.

Texts are read together, and a prompt with several responses only once, in the ways that `bonlib.models.ways` has
proved for the model in hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.models.decoding import alike, padded, said_plainly
from bonlib.models.kernels import cpu_kernels, plain_attention, release_freed_memory
from bonlib.models.loaded import LoadedModel
from bonlib.models.responses import Responses
from bonlib.models.ways import TASKS, Probe, Task, Ways, inner, proven, takes

Indices = NDArray[np.intp]
AT_ONCE = 16  # responses that are read with other next tokens at once: masks grow with the square of a row
FAR = 1536  # tokens of a row at which attention costs a tiny model as much as all else; larger ones, less
LARGE = 2**26  # logits of a batch: as many leave holes in memory that the next batch, of another length, seldom fills


class Layout(NamedTuple):
    """Where the tokens of a batch are: R rows, each a prompt and then one response or several, padded on the right."""

    ids: Tensor  # (R, L)
    lengths: tuple[int, ...]  # (R,) tokens of each row
    rows: Tensor  # (B,) the row of each response
    before: Tensor  # (B, T) column of the token before each of a response's tokens, in padding anywhere
    last: Tensor  # (B,) column of its last token
    # For rows with several responses, mask (R, 1, L, L) and position_ids (R, L): no response sees another.
    special: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """B prompts and as many responses to them.

    Attributes:
        prompts: B lists of token ids.
        responses: (B, T) the responses' tokens, padded on the right.
        response_mask: (B, T) 1 for a token, 0 for padding.
        pad_id: token to fill up with.
        instead: (B, T, K) tokens that might stand in the place of each, if a policy is asked for these.
    """

    prompts: Sequence[Sequence[int]]
    responses: Tensor
    response_mask: Tensor
    pad_id: int
    instead: Tensor | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """(B,) tokens of each response."""
        found: list[int] = self.response_mask.sum(1).tolist()
        return found

    @cached_property
    def sizes(self) -> list[int]:
        """(B,) tokens of each prompt with its response."""
        return [len(prompt) + length for prompt, length in zip(self.prompts, self.lengths, strict=True)]

    @cached_property
    def apart(self) -> Layout:
        """A row for each response."""
        return self._laid_out(range(len(self.prompts)))

    @cached_property
    def together(self) -> Layout | None:
        """Rows of a prompt with as many responses to it as is cheapest, or None if that saves next to nothing."""
        prompts = list(map(tuple, self.prompts))
        wanted, width, longest = Counter(prompts), max(map(len, prompts)), max(self.lengths)

        def cost(each: int) -> float:
            rows, length = sum(-(-count // each) for count in wanted.values()), width + each * longest
            return rows * length * (1 + length / FAR)

        most = max(wanted.values())
        each = min([most, *(1 << power for power in range(most.bit_length()))], key=cost)
        if cost(each) > 0.95 * cost(1):
            return None
        seen, row_at = Counter[tuple[int, ...]](), dict[tuple[tuple[int, ...], int], int]()
        row_of = list[int]()
        for prompt in prompts:
            row_of.append(row_at.setdefault((prompt, seen[prompt] // each), len(row_at)))
            seen[prompt] += 1
        return self._laid_out(row_of)

    def _laid_out(self, row_of: Sequence[int]) -> Layout:
        table, device, count = self.responses.cpu(), self.responses.device, max(row_of) + 1
        rows, owners, positions = ([list[int]() for _ in range(count)] for _ in range(3))
        starts = []
        for place, row in enumerate(row_of):
            prompt, length = self.prompts[place], self.lengths[place]
            if not rows[row]:
                rows[row] += prompt
                owners[row] += [0] * len(prompt)
                positions[row] += range(len(prompt))
            starts.append(len(rows[row]))
            rows[row] += table[place, :length].tolist()
            owners[row] += [place + 1] * length
            positions[row] += range(len(prompt), len(prompt) + length)
        starts_at = torch.tensor(starts, device=device)
        before = starts_at[:, None] - 1 + torch.arange(table.shape[1], device=device)
        before[:, 0] = torch.tensor([len(prompt) - 1 for prompt in self.prompts], device=device)
        special = {}
        if count < len(row_of):
            seen = _seen(padded(owners, -1, device)[0])
            special = {"attention_mask": seen, "position_ids": padded(positions, 0, device)[0]}
        return Layout(
            padded(rows, self.pad_id, device)[0],
            tuple(map(len, rows)),
            torch.tensor(list(row_of), device=device),
            before.masked_fill(self.response_mask == 0, 0),
            starts_at - 1 + torch.tensor(self.lengths, device=device),
            special,
        )


def token_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> TokenBatch:
    """Return prompts and responses, B lists of token ids each, none empty, as one batch."""
    return TokenBatch(prompts, *padded(responses, pad_id, device), pad_id)


def _seen(owner: Tensor) -> Tensor:
    """The mask (R, 1, L, L) with which tokens see those before them of the prompt (0) and of their own response."""
    before = torch.ones(2 * owner.shape[1:], dtype=torch.bool, device=owner.device).tril()
    seen = before & ((owner[:, :, None] == owner[:, None, :]) | (owner == 0)[:, None, :])
    return torch.zeros(seen.shape, device=owner.device).masked_fill(~seen, torch.finfo(torch.bfloat16).min)[:, None]


class ResponseLogits(NamedTuple):
    """What a model says before each real token of B responses, response by response, N tokens in all."""

    logits: Tensor  # (N, V), float32
    states: Tensor | None  # (B, T, H) what its layers end with there, if asked for


def response_logits(model: Any, batch: TokenBatch, *, states: bool = False) -> ResponseLogits:
    """Return a causal model's logits for each real response token alone; gradients flow.

    Args:
        model: a `transformers` model, or one with an adapter.
        batch: what it reads.
        states: whether to return what the layers end with, too.
    """
    ways = proven(model, "learning" if _learns(model) else "responses", begin=min(batch.sizes), length=max(batch.sizes))
    return _response_logits(model, batch, ways, states)


def _learns(model: Any) -> bool:
    return torch.is_grad_enabled() and any(weight.requires_grad for weight in model.parameters())


def _response_logits(model: Any, batch: TokenBatch, ways: Ways, states: bool = False) -> ResponseLogits:
    layout, real = (batch.together if "rows" in ways else None) or batch.apart, batch.response_mask.bool()
    options: dict[str, Any] = {"output_hidden_states": True} if states else {}
    options |= {"use_cache": False} if takes(model, "use_cache") else {}
    logits, places, found = [], [], None
    with _run_by(model, ways):
        for rows, ids, special in _passes(model, layout, ways):
            of_response = torch.isin(layout.rows, rows)
            here = (real & of_response[:, None]).nonzero(as_tuple=True)
            at_row, columns = torch.searchsorted(rows, layout.rows[here[0]]), layout.before[here]
            length = ids.shape[1]
            if "needed" in ways:
                with _only(model, at_row, columns, length) as asked:
                    output = model(ids, **special, **options, **asked)
                said = output.logits
            else:
                output = model(ids, **special, **options)
                said = output.logits[at_row, columns + (output.logits.shape[1] - length)]
            logits.append(said.float())
            places.append(here[0] * real.shape[1] + here[1])
            if states:
                last = output.hidden_states[-1]
                found = last.new_zeros(*real.shape, last.shape[-1]) if found is None else found
                found = found.index_put(here, last[at_row, columns + (last.shape[1] - length)])
    if len(logits) == 1:
        return ResponseLogits(logits[0], found)
    return ResponseLogits(torch.cat(logits)[torch.cat(places).argsort()], found)


@contextmanager
def _run_by(model: Any, ways: Ways) -> Iterator[None]:
    """Have a model run its layers in some ways."""
    with cpu_kernels(model, ways), ExitStack() as stack:
        if "eager" in ways:
            stack.enter_context(plain_attention(model))
        if "fused" in ways:
            stack.enter_context(_fused_activations(model))
        yield


@contextmanager
def _fused_activations(model: Any) -> Iterator[None]:
    """Have a model work out GPT-2's activation in one pass, forwards and backwards, in place of eight and more."""
    from transformers.activations import NewGELUActivation

    found = [m for m in model.modules() if type(m) is NewGELUActivation and "forward" not in vars(m)]
    for module in found:
        module.forward = partial(torch.nn.functional.gelu, approximate="tanh")
    try:
        yield
    finally:
        for module in found:
            del module.forward  # the instance's; that of its class is there again


def _passes(model: Any, layout: Layout, ways: Ways) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Which rows are read at once, their token ids, and what a model is told besides."""
    for rows in alike(layout.lengths, "right", ways):
        length = max(layout.lengths[row] for row in rows)
        special: dict[str, Tensor] = {}
        if layout.special:
            mask, position_ids = layout.special["attention_mask"], layout.special["position_ids"]
            special["attention_mask"] = mask[rows][:, :, :length, :length].to(next(model.parameters()).dtype)
            if takes(model, "position_ids"):
                special["position_ids"] = position_ids[rows, :length]
        ids = layout.ids[rows, :length]
        # Padding behind a text need not be masked, as a causal model does not see it; but some models warn of no mask.
        yield torch.tensor(rows, device=ids.device), ids, special or {"attention_mask": torch.ones_like(ids)}


@contextmanager
def _only(model: Any, rows: Tensor, columns: Tensor, length: int) -> Iterator[dict[str, Any]]:
    """Have the output layer see only the states in some places, (N,) each; it yields the options for that.

    The output layer costs a small model as much as all the others. Of a slice of states, PyTorch would even copy the
    vocabulary's weights for each text.
    """

    def needed(_: Any, states: tuple[Tensor]) -> tuple[Tensor]:
        return (states[0][rows, columns - (length - states[0].shape[1])],)

    hook = inner(model).get_output_embeddings().register_forward_pre_hook(needed)
    try:
        yield {"logits_to_keep": length - int(columns.min())} if takes(model, "logits_to_keep") else {}
    finally:
        hook.remove()


def response_states(model: Any, batch: TokenBatch, *, along: bool = False) -> Tensor:
    """Return what the layers of a causal model, or of a classifier on one, end with; gradients flow.

    Args:
        model: a `transformers` model, or one with an adapter.
        batch: what it reads.
        along: whether to return it before each token and after the last, (B, T + 1, H), anything in padding; else at
            each last token, (B, H).
    """
    ways = proven(model, "states", begin=min(batch.sizes), length=max(batch.sizes))
    return _response_states(model, batch, ways, along)


def _response_states(model: Any, batch: TokenBatch, ways: Ways, along: bool = False) -> Tensor:
    layout, found = (batch.together if "rows" in ways else None) or batch.apart, None
    columns = layout.last[:, None]
    if along:
        lengths = batch.response_mask.sum(1, keepdim=True)
        columns = torch.cat([layout.before, columns], 1).scatter(1, lengths, columns)
    with _run_by(model, ways):
        for rows, ids, special in _passes(model, layout, ways):
            here = torch.isin(layout.rows, rows)
            states = inner(model).base_model(ids, **special).last_hidden_state
            states = states[torch.searchsorted(rows, layout.rows[here])[:, None], columns[here]]
            found = states.new_zeros(len(here), *states.shape[1:]) if found is None else found
            found = found.index_put((here,), states)
    assert found is not None
    return found if along else found[:, 0]


def next_states(model: Any, batch: TokenBatch) -> Tensor:
    """Return what the layers of a causal model, or of a classifier on one, end with at other next tokens.

    Args:
        model: a `transformers` model, or one with an adapter.
        batch: what it reads, with tokens `instead` of the responses' own, each the end of a text.

    Returns:
        Shape (B, T, K, H), 0 in padding.
    """
    ways = proven(model, "ahead", begin=min(batch.sizes), length=max(batch.sizes))
    return _next_states(model, batch, ways)


def _next_states(model: Any, batch: TokenBatch, ways: Ways) -> Tensor:
    assert batch.instead is not None
    if "ahead" in ways:
        starts = range(0, len(batch.prompts), AT_ONCE)
        return torch.cat([_next_as_branches(model, _part(batch, slice(at, at + AT_ONCE))) for at in starts])
    real, count = batch.response_mask.bool(), batch.instead.shape[2]
    own, texts = batch.responses.tolist(), list[list[int]]()
    for prompt, row, length in zip(batch.prompts, own, batch.lengths, strict=True):
        texts += [[*prompt, *row[:taken]] for taken in range(length) for _ in range(count)]
    tokens = [[token] for token in batch.instead[real].flatten().tolist()]
    states = response_states(model, token_batch(texts, tokens, pad_id=batch.pad_id, device=batch.responses.device))
    found = states.new_zeros(*batch.instead.shape, states.shape[1])
    return found.index_put((real,), states.view(-1, count, states.shape[1]))


def _part(batch: TokenBatch, rows: slice) -> TokenBatch:
    """Some responses of a batch with tokens `instead`."""
    assert batch.instead is not None
    own = batch.responses[rows], batch.response_mask[rows]
    return TokenBatch(batch.prompts[rows], *own, batch.pad_id, batch.instead[rows])


def _next_as_branches(model: Any, batch: TokenBatch) -> Tensor:
    """In one pass over each response, behind which the tokens stand that see its beginning and themselves."""
    assert batch.instead is not None
    base, device = inner(model).base_model, batch.responses.device
    trunks = [[*p, *row[:n]] for p, row, n in zip(batch.prompts, batch.responses.tolist(), batch.lengths, strict=True)]
    trunk, _ = padded(trunks, batch.pad_id, device)
    begins = torch.tensor([len(prompt) for prompt in batch.prompts], device=device)
    rows, length, count = len(trunk), trunk.shape[1], batch.instead.shape[2]
    at = begins[:, None] + torch.arange(batch.instead.shape[1], device=device)  # where each token of a response stands
    at = at.clamp(max=length - 1)[..., None].expand(-1, -1, count).reshape(rows, -1)  # only padding stands further
    along = torch.arange(length, device=device)
    seen = torch.cat([along[:, None].expand(rows, -1, -1) >= along, at[..., None] > along], dim=1)
    itself = torch.eye(at.shape[1], dtype=torch.bool, device=device).expand(rows, -1, -1)
    seen = torch.cat([seen, torch.nn.functional.pad(itself, (0, 0, length, 0))], dim=2)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(torch.bfloat16).min)
    ids = torch.cat([trunk, batch.instead.reshape(rows, -1)], dim=1)
    position_ids = torch.cat([along.expand(rows, -1), at], dim=1)
    said = base(ids, attention_mask=mask[:, None], position_ids=position_ids).last_hidden_state[:, length:]
    return said.view(*batch.instead.shape, -1) * batch.response_mask[..., None, None]


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
    found = np.empty(len(responses))
    for places, batch in response_batches(loaded, prompts, responses, batch_size):
        with torch.no_grad():
            said = batch.responses[batch.response_mask.bool()]
            log_probs = token_log_probs(response_logits(loaded.model, batch).logits, said)
            tokens = log_probs.cpu().double().numpy()  # Apple's GPUs know no float64
        found[places] = np.add.reduceat(tokens, np.cumsum([0, *batch.lengths[:-1]]))
    return found


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of one token a row, (N,), from logits (N, V), to the last digit of the logits.

    Over a large vocabulary sums in single precision are off by 1e-5 always to one side, which adds up in a response.
    """
    highest = logits.amax(1, keepdim=True)
    weights = (logits - highest).exp_()
    total = weights.sum(1, dtype=torch.float32 if logits.device.type == "mps" else torch.float64)
    return (logits.gather(1, tokens[:, None]) - highest)[:, 0] - total.log()


def response_batches(
    loaded: LoadedModel, prompts: Sequence[str], responses: Responses, batch_size: int
) -> Iterator[tuple[Indices, TokenBatch]]:
    """Yield places of responses to like prompts, and these with their prompts; arguments as `response_log_probs`."""
    if len(prompts) != len(responses):
        raise ValueError(f"there are {len(prompts)} prompts for {len(responses)} responses; list one for each")
    encoded = loaded.encode(prompts, responses.token_ids.shape[1])
    tokens = [row[row >= 0].tolist() for row in responses.token_ids]
    order = np.array(sorted(range(len(tokens)), key=lambda i: (len(encoded[i]), encoded[i], len(tokens[i]))))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        ids = [encoded[i] for i in places], [tokens[i] for i in places]
        batch = token_batch(*ids, pad_id=loaded.pad_token_id, device=loaded.device)
        yield places, batch
        if loaded.device.type == "cpu" and sum(batch.lengths) * loaded.vocabulary > LARGE:
            release_freed_memory()


def _probed(model: Any, probe: Probe) -> TokenBatch:
    return token_batch(probe.prompts, probe.responses, pad_id=probe.pad_id, device=next(model.parameters()).device)


def _read(model: Any, probe: Probe, ways: Ways) -> list[Tensor]:
    batch = _probed(model, probe)
    return list(torch.split(_response_logits(model, batch, ways).logits, batch.lengths))


def _with_gradient(model: Any, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradient of a number made of them, as one list of numbers."""
    total = torch.stack([output.float().log_softmax(-1)[..., ::3].sum() for output in outputs]).sum()
    learned = _some_of_each_kind(model)
    grads = torch.autograd.grad(total, learned, allow_unused=True)
    flat = [(torch.zeros_like(w) if g is None else g).flatten().float() for w, g in zip(learned, grads, strict=True)]
    return [*(output.detach() for output in outputs), torch.cat(flat)]


def _some_of_each_kind(model: Any, most: int = 10**6) -> list[Tensor]:
    """Of the weights that are learned, the first and the last of each name, layers counted as one; no huge ones."""
    kinds: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.numel() <= most:
            kinds.setdefault(re.sub(r"\d+", "", name), []).append(weight)
    found = [weight for weights in kinds.values() for weight in {id(w): w for w in (weights[0], weights[-1])}.values()]
    return found or [weight for weight in model.parameters() if weight.requires_grad][:1]


@torch.enable_grad()
def _learned_plainly(model: Any, probe: Probe) -> list[Tensor]:
    return _with_gradient(model, said_plainly(model, probe))


@torch.enable_grad()
def _learned(model: Any, probe: Probe, ways: Ways) -> list[Tensor]:
    return _with_gradient(model, _read(model, probe, ways))


def _states_plainly(model: Any, probe: Probe) -> list[Tensor]:
    device = next(model.parameters()).device
    texts = [torch.tensor([text], device=device) for text in probe.texts]
    states = [inner(model).base_model(text).last_hidden_state[0, -1:] for text in texts]
    return _with_gradient(model, states) if _learns(model) else states


def _states(model: Any, probe: Probe, ways: Ways) -> list[Tensor]:
    states = list(torch.split(_response_states(model, _probed(model, probe), ways), 1))
    return _with_gradient(model, states) if _learns(model) else states


def _ahead(model: Any, probe: Probe) -> TokenBatch:
    """The probe's responses, and instead of each token the one that ends the prompt."""
    batch = _probed(model, probe)
    last = torch.tensor([prompt[-1:] for prompt in probe.prompts], device=batch.responses.device)
    return replace(batch, instead=last.expand_as(batch.responses)[..., None])


@torch.no_grad()
def _ahead_plainly(model: Any, probe: Probe) -> list[Tensor]:
    found = []
    for prompt, row in zip(probe.prompts, probe.responses, strict=True):
        texts = [[*prompt, *row[:place], prompt[-1]] for place in range(len(row))]
        inputs = [torch.tensor([text], device=next(model.parameters()).device) for text in texts]
        found.append(torch.cat([inner(model).base_model(ids).last_hidden_state[0, -1:] for ids in inputs]))
    return found


@torch.no_grad()
def _ahead_by(model: Any, probe: Probe, ways: Ways) -> list[Tensor]:
    batch = _ahead(model, probe)
    said = _next_states(model, batch, ways)
    return [rows[:length, 0] for rows, length in zip(said, batch.lengths, strict=True)]


_READ = ("batch", "right", "rows", "needed")
TASKS["responses"] = Task((*_READ, "products", "attention"), torch.no_grad()(said_plainly), torch.no_grad()(_read))
TASKS["learning"] = Task((*_READ, "eager", "fused"), _learned_plainly, _learned)
TASKS["ahead"] = Task(
    ("ahead",), _ahead_plainly, _ahead_by, lambda model, way: takes(inner(model).base_model, "position_ids")
)
TASKS["states"] = Task(("batch", "right", "rows", "eager"), _states_plainly, _states)

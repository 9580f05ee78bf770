"""A step of one token, written out for the two families that most language models are made like: GPT-2's and Llama's.

What a step costs beside its matrix products is much in a small model: many small operations, a cache that is copied or
read where it need not be. Here activations, products with a gate and sums with what came before are part of the matrix
products; what was read of a prompt is kept once for all its draws, which attend to it by one product; and the cache of
the draws has its size from the start, so that on a GPU a step is one CUDA graph. `bonlib.models.ways` calls it
"written", and proves it like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bonlib.models.ways import inner

LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
WORTH_SHARING = 750_000  # bytes of a layer's keys not read again, below which the two products more cost as much
RECORDED_ON = ("cuda",)  # kinds of devices where a step is launched as one graph
ENOUGH = 16  # steps that are worth the recording of a CUDA graph

# x, an activation or "none", and what the result is added to or multiplied with: a matrix product with all that.
Product = Callable[..., Tensor]


class Block(NamedTuple):
    """One layer of a model."""

    before: Callable[[Tensor], Tensor]  # what comes before attention: the norm
    heads: Callable[[Tensor], Sequence[Tensor]]  # queries, keys and values, (B, H · d) each
    out: Product
    after: Callable[[Tensor], Tensor]
    feed: Callable[[Tensor, Tensor], Tensor]  # the feed-forward part of its input, and what that is added to


class Plan(NamedTuple):
    """All layers of a model, and what is around them."""

    embed: Callable[[Tensor, Tensor], Tensor]  # tokens and their positions, (B,) each
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None  # states and positions (B, 1): cosine and sine
    blocks: list[Block]
    norm: Callable[[Tensor], Tensor]
    head: Product


def can_be_written(model: Any) -> bool:
    """Return whether the step of a model is one of those written out here, and nobody listens to its layers."""
    core, config = inner(model), model.config
    if not type(core).__module__.startswith("transformers.models.") or torch.is_autocast_enabled(
        next(model.parameters()).device.type
    ):
        return False
    if any(_listened_to(part) for part in core.modules()):
        return False
    if type(core).__name__ == "GPT2LMHeadModel":
        plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
        return plain and config.activation_function in ("gelu_new", "gelu_pytorch_tanh")
    return type(core).__name__ in LLAMA_LIKE and config.hidden_act == "silu"


def _listened_to(part: Any) -> bool:
    """Whether hooks are on a module, besides those by which transformers collects states when it is asked for them."""
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return hasattr(part, "_hf_hook") or any(
        getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks
    )


class WrittenStep:
    """Reads a token a row, behind prompts that were read before.

    Args:
        model: a language model that `can_be_written`.
        packed: weights laid out for oneDNN, by module, as far as there are any (`bonlib.models.kernels`).
        cache: what `transformers` kept of P prompts.
        mask: (P, L) 1 for a token of these, 0 for the padding before it.
        row_of: (B,) the prompt of each row, in ascending order.
        room: how many tokens will come.
        sharing: bytes of a layer's keys to be spared, from which on the draws of a prompt share them.
    """

    def __init__(
        self,
        model: Any,
        packed: Mapping[Any, Tensor],
        cache: Any,
        mask: Tensor,
        row_of: Tensor,
        room: int,
        sharing: float,
    ) -> None:
        self.plan = _plan(inner(model), packed)
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        (prompts, heads, length, width), rows = keys[0].shape, len(row_of)
        self.prompts, self.row_of, self.positions = prompts, row_of, mask.sum(1)[row_of]
        spared = (rows - prompts) * heads * length * width * keys[0].element_size()
        self.shared = list(zip(keys, values, strict=True)) if spared >= sharing else []
        self.begin = 0 if self.shared else length  # where the new tokens begin in the cache of the rows
        self.keys, self.values = (
            [
                torch.cat([kept[row_of, :, : self.begin], kept.new_zeros(rows, heads, room, width)], dim=2)
                for kept in each
            ]
            for each in (keys, values)
        )
        self.hidden = None  # (B, 1, 1, L), added to the scores of the prompt
        if not bool(mask.all()):
            self.hidden = keys[0].new_zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[row_of, None, None]
        self.length, self.done = length, 0  # tokens of the prompts, and read since
        self._place_rows()
        # A graph has one shape: it looks at the whole cache, and what is not there yet is masked.
        self.whole = keys[0].device.type in RECORDED_ON and room >= ENOUGH
        if self.whole:
            self.at = torch.full((1,), self.begin, device=row_of.device)
            self.unread = keys[0].new_full((self.begin + room,), -torch.inf)
            self.unread[: self.begin] = 0.0
            self.tokens = torch.zeros_like(row_of)
            self.graph: Any = None
            self.logits = torch.empty(0)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, V) of what comes after tokens (B,)."""
        if self.whole:
            return self._replay(tokens)
        logits = self._step(tokens)
        self.positions = self.positions + 1
        self.done += 1
        return logits

    def cuts(self, left: int) -> bool:
        """Return whether to let finished rows go, where so many are left: a graph is recorded anew then."""
        return not self.whole or 2 * left <= len(self.row_of)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows, in the same order; one that is named twice goes on as two."""
        self.keys, self.values = ([each[rows] for each in kept] for kept in (self.keys, self.values))
        self.row_of, self.positions = self.row_of[rows], self.positions[rows]
        self.hidden = None if self.hidden is None else self.hidden[rows]
        self._place_rows()
        if self.whole:
            self.graph, self.tokens = None, self.tokens[rows]

    def _place_rows(self) -> None:
        """Give each row a place in a table of prompts with as many rows each, (P, R)."""
        counts = self.row_of.bincount(minlength=self.prompts)
        before = counts.cumsum(0) - counts
        rank = torch.arange(len(self.row_of), device=self.row_of.device) - before[self.row_of]
        self.most = int(counts.max())
        self.places = self.row_of * self.most + rank
        self.full = len(self.row_of) == self.prompts * self.most

    def _step(self, tokens: Tensor) -> Tensor:
        plan = self.plan
        states = plan.embed(tokens, self.positions)
        turns = plan.rotary(states, self.positions[:, None]) if plan.rotary else None
        for layer, block in enumerate(plan.blocks):
            heads = block.heads(block.before(states))
            states = block.out(self._attend(layer, heads, turns), add=states)
            states = block.feed(block.after(states), states)
        return plan.head(plan.norm(states))

    def _attend(self, layer: int, heads: Sequence[Tensor], turns: tuple[Tensor, Tensor] | None) -> Tensor:
        shared, width = self.keys[layer].shape[1], self.keys[layer].shape[3]
        query, key, value = (each.view(len(each), -1, width) for each in heads)
        if turns is not None:
            both = torch.cat([query, key], dim=1)
            first, second = both.chunk(2, dim=2)
            both = both * turns[0] + torch.cat([-second, first], dim=2) * turns[1]
            query, key = both[:, :-shared], both[:, -shared:]
        keys, values = (self._kept(kept[layer], new) for kept, new in ((self.keys, key), (self.values, value)))
        # The heads that share keys are the rows of one product, and so are all draws of a shared prompt.
        query = (query * width**-0.5).reshape(len(query), shared, -1, width)
        scores = query @ keys.transpose(2, 3)
        if self.whole:
            scores += self.unread
        if self.shared:
            prompt_keys, prompt_values = self.shared[layer]
            scores = torch.cat([self._by_row(self._by_prompt(query) @ prompt_keys.transpose(2, 3)), scores], dim=3)
        if self.hidden is not None:
            scores[..., : self.length] += self.hidden
        weights = scores.softmax(3, dtype=torch.float32).to(value.dtype)
        mixed = weights[..., -keys.shape[2] :] @ values
        if self.shared:
            mixed = mixed + self._by_row(self._by_prompt(weights[..., : self.length]) @ prompt_values)
        return mixed.flatten(1)

    def _kept(self, kept: Tensor, new: Tensor) -> Tensor:
        """Put the keys or values of the new tokens into the cache; return it as far as it is filled."""
        if self.whole:
            kept.index_copy_(2, self.at, new[:, :, None])
            return kept
        place = self.begin + self.done
        kept[:, :, place] = new
        return kept[:, :, : place + 1]

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """What belongs to rows, (B, H, g, …), by prompt: (P, H, R · g, …)."""
        if not self.full:
            rows = rows.new_zeros(self.prompts * self.most, *rows.shape[1:]).index_copy_(0, self.places, rows)
        table = rows.view(self.prompts, self.most, *rows.shape[1:]).transpose(1, 2)
        return table.reshape(self.prompts, rows.shape[1], -1, rows.shape[3])

    def _by_row(self, table: Tensor) -> Tensor:
        """The way back."""
        prompts, heads, _, width = table.shape
        rows = (
            table.view(prompts, heads, self.most, -1, width)
            .transpose(1, 2)
            .reshape(-1, heads, table.shape[2] // self.most, width)
        )
        return rows if self.full else rows[self.places]

    def _replay(self, tokens: Tensor) -> Tensor:
        """The same by a CUDA graph, recorded at the first call and after rows have left."""
        self.tokens.copy_(tokens)
        self.unread.index_fill_(0, self.at, 0.0)
        if self.tokens.device.type != "cuda":  # in tests
            self.logits = self._step(self.tokens)
        elif self.graph is None:
            # Recorded work is not done; a first time beside the recording lets libraries set themselves up.
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step(self.tokens)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = self._step(self.tokens)
        if self.graph is not None:
            self.graph.replay()
        self.positions += 1
        self.at += 1
        return self.logits


def _plan(core: Any, packed: Mapping[Any, Tensor]) -> Plan:
    def product(module: Any) -> Product:
        return _packed_product(module, packed[module]) if module in packed else _plain_product(module)

    def gpt2_block(layer: Any) -> Block:
        heads, out = product(layer.attn.c_attn), product(layer.attn.c_proj)
        up, down = product(layer.mlp.c_fc), product(layer.mlp.c_proj)
        return Block(
            layer.ln_1,
            lambda x: heads(x).chunk(3, dim=1),
            out,
            layer.ln_2,
            lambda x, rest: down(up(x, "gelu"), add=rest),
        )

    def llama_block(layer: Any) -> Block:
        attention, feed = layer.self_attn, layer.mlp
        heads = [product(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        gate, up, down = (product(part) for part in (feed.gate_proj, feed.up_proj, feed.down_proj))
        return Block(
            layer.input_layernorm,
            lambda x: [head(x) for head in heads],
            product(attention.o_proj),
            layer.post_attention_layernorm,
            lambda x, rest: down(up(x, times=gate(x, "swish")), add=rest),
        )

    head = product(core.lm_head)
    if type(core).__name__ == "GPT2LMHeadModel":
        body = core.transformer
        blocks = [gpt2_block(layer) for layer in body.h]
        return Plan(lambda tokens, places: body.wte(tokens) + body.wpe(places), None, blocks, body.ln_f, head)
    body = core.model
    blocks = [llama_block(layer) for layer in body.layers]
    return Plan(lambda tokens, _: body.embed_tokens(tokens), body.rotary_emb, blocks, body.norm, head)


def _packed_product(module: Any, weight: Tensor) -> Product:
    pointwise, how = torch.ops.mkldnn._linear_pointwise, {"none": "", "swish": "", "gelu": "tanh"}

    def product(x: Tensor, then: str = "none", *, add: Tensor | None = None, times: Tensor | None = None) -> Tensor:
        if add is not None:
            return pointwise.binary(x, add, weight, module.bias, "add")
        if times is not None:
            return pointwise.binary(x, times, weight, module.bias, "mul")
        return pointwise(x, weight, module.bias, then, [], how[then])

    return product


def _plain_product(module: Any) -> Product:
    def product(x: Tensor, then: str = "none", *, add: Tensor | None = None, times: Tensor | None = None) -> Tensor:
        result: Tensor = module(x)
        if then == "gelu":
            result = functional.gelu(result, approximate="tanh")
        elif then == "swish":
            result = functional.silu(result)
        result = result if times is None else result * times
        return result if add is None else result + add

    return product

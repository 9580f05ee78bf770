"""Fast ways to run a model: each is compared with the plain pass on the model in hand before it is used.

The plain pass reads one text at a time, without a cache, without padding and with the model's own layers. It is right
for every model and slow. Whatever is faster assumes something: that a cache can be reordered, that padding is not
seen, that attention is the usual one. A short probe finds out; what fails is left out, with a line in the log.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from platformdirs import user_cache_path
from torch import Tensor

from bonlib.checks import one_line

Ways = frozenset[str]

WAYS: Mapping[str, tuple[str, str]] = {  # what it is, and what it costs to go without
    "batch": ("several texts in one pass", "texts are read one by one"),
    "cache": ("what was read is kept from token to token", "each token reads its whole text again"),
    "shared": ("a prompt is read once for its draws, and finished draws leave the batch", "each draw reads its prompt"),
    "written": ("a token's step written out, over a cache of fixed size", "the model's own layers, token by token"),
    "left": ("prompts of unlike length together, padded on the left", "prompts of each length go by themselves"),
    "right": ("texts of unlike length together, padded on the right", "texts of each length go by themselves"),
    "beginnings": ("a beginning that texts share is read once", "each text is read whole"),
    "rows": ("several responses in a row behind their prompt", "each response is read with a prompt of its own"),
    "ahead": ("other next tokens behind the response that they leave", "each is read with a text of its own"),
    "needed": ("the output layer sees only the tokens in question", "all tokens go through the output layer"),
    "pooled": ("the head sees only the last token", "the whole classifier is run"),
    "eager": ("attention by plain products, faster backwards", "the model's own attention"),
    "fused": ("GPT-2's activation in one pass", "the activation as the model has it, in eight passes"),
    "products": ("weights laid out beforehand for the processor", "the model's own matrix products"),
    "attention": ("a single token attends by plain products", "the model's own attention"),
    "inference": ("tensors carry nothing that a gradient would need", "drawing is a few per cent slower"),
}
NEEDS = {"shared": "cache", "written": "shared", "beginnings": "pooled"}  # a way that makes sense only with another

# Relative error of logits, root mean square over the vocabulary. Over thirty layers rounding makes 6e-6 in single
# precision and 6e-2 in bfloat16; a way that is wrong is off by about as much as the logits themselves.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
GRADIENT = 5  # the same for gradients, in units of that tolerance
SHORT = 20  # tokens of a probe's longest text, at least
SMALL = 50_000_000  # weights of a model that is tried at the length in question, whatever its configuration says
CHEAP = 128  # up to this length a text may grow to in a probe; of longer ones only the end does
BEYOND = 8  # by so many tokens

_log = logging.getLogger("bonlib")


class UnfitModelError(ValueError):
    """A model that cannot be run rightly even by the plain pass; the message says why, and what to take."""


def random_inside(name: str) -> UnfitModelError:
    """Return the error of a model that answers the same text otherwise each time."""
    return UnfitModelError(
        f"{name} says other things of the same text each time: it is random inside, and has no log-probabilities to "
        "speak of; take another model"
    )


@dataclass(frozen=True)
class Probe:
    """A few random texts as token ids: prompts, one that is short and three that begin alike, and their responses."""

    prompts: tuple[list[int], ...]
    responses: tuple[list[int], ...]
    pad_id: int

    @property
    def texts(self) -> list[list[int]]:
        """Prompt and response of each."""
        return [prompt + response for prompt, response in zip(self.prompts, self.responses, strict=True)]


class Task(NamedTuple):
    """Something that is done with models, in ways that have to be proved."""

    ways: tuple[str, ...]  # which there are, in the order in which they are tried
    plain: Callable[[Any, Probe], Sequence[Tensor]]  # what is right: tensors whose last axis is compared as a whole
    fast: Callable[[Any, Probe, Ways], Sequence[Tensor]]  # the same by some of the ways
    applies: Callable[[Any, str], bool] = lambda model, way: True  # whether a way is one for a model at all


TASKS: dict[str, Task] = {}  # by name; `decoding` and `reading` enter what they do
_of_model: weakref.WeakKeyDictionary[Any, dict[Any, Ways]] = weakref.WeakKeyDictionary()
_of_kind: dict[str, Ways] = {}  # what is known in this process
_said: set[str] = set()  # lines of the log


def proven(model: Any, task: str, *, length: int, begin: int = 1) -> Ways:
    """Return which ways are right for a model; those not known yet are tried.

    Args:
        model: a `transformers` model, or one with an adapter.
        task: one of `TASKS`.
        length: tokens of the longest text in question, as windows may matter to it.
        begin: tokens of the shortest one.

    Raises:
        UnfitModelError: if not even the plain way is right.
    """
    weight, config = next(model.parameters()), model.config
    small = sum(weight.numel() for weight in model.parameters()) <= SMALL
    shape, far = _shape(config, begin, length, grows=task in ("drawing", "branching"), small=small)
    about = (weight.dtype, weight.device.type, config._attn_implementation, _adapter_at_work(model))
    state = (task, shape, *about, *(way for way in TASKS[task].ways if TASKS[task].applies(model, way)))
    known = _of_model.setdefault(model, {})
    if state not in known:
        kind = _kind(model, [str(part) for part in state])
        found = _of_kind.get(kind) or _remembered(kind, model)
        if found is None:
            found, telling = _try_out(model, task, shape, far)
            if not telling:  # weights that say nothing, such as those of a new head
                return found
            _remember(kind, model, found)
        _of_kind[kind] = known[state] = found
    return known[state]


def _adapter_at_work(model: Any) -> str:
    """Names of a model's adapters, and whether they are switched on."""
    if not hasattr(model, "peft_config"):
        return ""
    layers = [module for module in model.modules() if hasattr(module, "disable_adapters")]
    return f"{model.active_adapter} {any(layer.disable_adapters for layer in layers)}"


def _kind(model: Any, state: Sequence[str]) -> str:
    """A hash of all that decides which ways are right: code, configuration, adapter, number format, processor."""
    import transformers

    config = {key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    for adapter in adapters.values():
        adapter.pop("base_model_name_or_path", None)
    kinds = [f"{type(part).__module__}.{type(part).__qualname__}" for part in (model, inner(model))]
    processor = [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA")]
    learned = sorted({name.split(".")[-1] for name, weight in model.named_parameters() if weight.requires_grad})
    about = [_code(), torch.__version__, transformers.__version__, processor, kinds, config, adapters, learned, state]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code() -> str:
    """A hash of the code that runs models: when it changes, ways are tried anew."""
    digest = hashlib.sha256()
    for name in ("ways", "kernels", "steps", "caches", "decoding", "reading", "classifiers"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def inner(model: Any) -> Any:
    """Return a model without the adapter around it; the adapter's layers are in it all the same."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def class_of(model: Any) -> str:
    """Return what a model is called in messages."""
    return f"model {type(inner(model)).__name__}"


def takes(model: Any, name: str) -> bool:
    """Return whether a model's forward pass takes an argument; an adapter hides those of the model it is on."""
    return name in inspect.signature(inner(model).forward).parameters


# -- trying out --------------------------------------------------------------------------------------------------------


def _try_out(model: Any, task: str, shape: Shape, far: bool) -> tuple[Ways, bool]:
    """The ways that are right, and whether others with the same configuration may rely on that."""
    name, probe, entry = class_of(model), make_probe(model, shape), TASKS[task]
    # Behind a far border, a row of short responses is wrong by too little to be seen, and one of long ones by much.
    ways = tuple(way for way in entry.ways if entry.applies(model, way) and not (far and way == "rows"))
    device = next(model.parameters()).device.type
    with torch.autocast(device, enabled=False), torch.random.fork_rng(), _evaluating(model):
        try:
            right = [each.detach() for each in entry.plain(model, probe)]
            again = entry.plain(model, Probe(probe.prompts[:1], probe.responses[:1], probe.pad_id))[0].detach()
        except Exception as error:  # any of what a model's code can raise
            raise UnfitModelError(
                f"{name} fails at {task}, at a plain text of token ids alone ({one_line(error)}): take a text "
                "model that needs nothing else, such as one of AutoModelForCausalLM"
            ) from error
        tolerance = TOLERANCE.get(next(model.parameters()).dtype, 0.15)
        if _differ([right[0][: len(again)]], [again], tolerance):
            raise random_inside(name)

        def passes(ways: Iterable[str]) -> bool:
            try:
                return not _differ(right, entry.fast(model, probe, frozenset(ways)), tolerance)
            except Exception as error:  # a way may fail as it likes: then it is not taken
                _log.debug("%s, %s by %s: %s", name, task, ways, error)
                return False

        if not _tells(right):
            return frozenset(), False
        if passes(ways):
            return frozenset(ways), True
        if not passes(()):
            raise UnfitModelError(
                f"{name} does not come to the same numbers by {task}, even without any fast way, as by one plain "
                "pass over each text: what it says of a token depends on how long the text is, or on what follows; "
                "take another model, or shorter texts"
            )
        kept: list[str] = []
        for way in ways:
            if NEEDS.get(way, way) in [*kept, way] and passes([*kept, way]):
                kept.append(way)
    left_out = [way for way in ways if way not in kept and NEEDS.get(way, way) in [*kept, way]]
    costs = "; ".join(f"{way} ({WAYS[way][1]})" for way in left_out)
    line = f"{type(inner(model)).__name__}, {task}: right only without {costs}"
    if line not in _said:  # texts of other lengths may say it again
        _said.add(line)
        _log.warning(line)
    return frozenset(kept), True


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tells(right: Sequence[Tensor]) -> bool:
    """Whether the model says anything at all: one whose outputs never change agrees with every way."""
    outputs = torch.cat([each for each in right if each.ndim == 2])
    return bool((outputs != outputs[0]).any())


def _differ(right: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    """Whether any of the numbers is further from what is right than rounding explains.

    Logits (T, V) are compared token by token, up to what all of a token have in common, which means nothing; a
    classifier's few outputs (B, k) by their spread over texts; a gradient, all in one row, as a whole.
    """
    for want, got in zip(right, found, strict=True):
        want, got = want.cpu().double(), got.detach().cpu().double()  # Apple's GPUs know no float64
        if want.shape != got.shape or not bool(got.isfinite().all()):
            return True
        size, allowed = want.square().mean().sqrt(), tolerance
        if want.ndim == 1:
            error, scale, allowed = (got - want).square().mean().sqrt(), size, GRADIENT * tolerance
        elif want.shape[1] <= 2:
            error, scale = (got - want).abs().max(), torch.maximum((want - want.mean(0)).abs().max(), 1e-2 * size)
        else:
            off, spread = got - want, want - want.mean(-1, keepdim=True)
            error = (off - off.mean(-1, keepdim=True)).square().mean(-1).sqrt()
            scale = torch.maximum(spread.square().mean(-1).sqrt(), 1e-3 * size)
        if bool((error > allowed * scale).any()):
            return True
    return False


def make_probe(model: Any, shape: Shape) -> Probe:
    """Return random texts of some lengths, of tokens that have no special meaning; those of one length begin alike."""
    config = text_config(model.config)
    special: set[int] = set()
    for key, value in [*model.config.to_dict().items(), *config.to_dict().items()]:
        if key.endswith(("_token_id", "_token_index", "_token_ids")) and value is not None:
            special |= set(value) if isinstance(value, list | tuple) else {value}
    size = min(getattr(config, "vocab_size", None) or 100, vocabulary(model))
    usable = torch.tensor([token for token in range(size) if token not in special])
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return usable[torch.randint(len(usable), (count,), generator=generator)].tolist()

    # Encoder–decoders judge a text by what they end with at its end token.
    end = [config.eos_token_id] if getattr(model.config, "is_encoder_decoder", False) else []
    prompts = {length: words(length) for length, _ in shape}
    return Probe(tuple(prompts[length] for length, _ in shape), tuple(words(n) + end for _, n in shape), int(usable[0]))


def vocabulary(model: Any) -> int:
    """Return how many tokens a model knows."""
    try:
        return int(inner(model).get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # it has no table of tokens
        return sys.maxsize


def text_config(config: Any) -> Any:
    """Return the part of a configuration that is about text; of most it is the whole."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


# -- how far a probe must reach ----------------------------------------------------------------------------------------

_BORDER = re.compile(r"window|chunk|block|local|span|stride|segment|original_max|top_?k|bucket|compress|conv|kernel")


Shape = tuple[tuple[int, int], ...]  # tokens of prompt and response, of each text of a probe


def _shape(config: Any, begin: int, length: int, *, grows: bool, small: bool) -> tuple[Shape, bool]:
    """How long a probe's texts must be to say anything of others, and whether those go beyond a far border.

    Those in question have from `begin` to `length` tokens; if they grow, they may cross a border on their way. A probe
    of a small model need not be short.
    """
    borders = _borders(json.dumps(config.to_dict(), sort_keys=True, default=str))
    far = [border for border in borders if CHEAP < border < length]
    if far:
        border = far[-1]
        first = (border + 1, 3) if begin > border else (border - 2, 6) if grows else (border - 4, 3)
        return (first, *((border + 4, count) for count in (4, 2, 3))), True
    near = [border for border in borders if border < min(length, CHEAP + 1)]
    room = getattr(text_config(config), "max_position_embeddings", None) or sys.maxsize
    wanted = 1 << (min(length, CHEAP) - 1).bit_length() if small else 0  # a power of 2, so that there are few
    reach = max([SHORT, wanted, *(border + BEYOND for border in near)])
    # No further than the texts may go: behind the next border things may be otherwise.
    reach = max(min([reach, room, *(border for border in borders if border >= length)]), 6)
    short = max(1, min(2, reach - 5))  # much padding, and fewer tokens than any number of the best to look back at
    return ((short, reach - short if near and grows else 3), *((reach - 4, count) for count in (4, 2, 3))), False


@cache
def _borders(config: str) -> tuple[int, ...]:
    """Lengths in a configuration at which a model may begin to do something else."""
    found: set[int] = set()

    def visit(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inside in value.items():
                visit(key, inside)
        elif isinstance(value, list):
            for inside in value:
                visit(name, inside)
        elif isinstance(value, int) and not isinstance(value, bool) and 1 < value < 10**6 and _BORDER.search(name):
            found.add(value)

    visit("", json.loads(config))
    return tuple(sorted(found))


# -- remembering -------------------------------------------------------------------------------------------------------


def _file(kind: str) -> Path:
    return user_cache_path("bonlib") / "ways" / f"{kind[:32]}.json"


def _remembered(kind: str, model: Any) -> Ways | None:
    """The ways found earlier, perhaps by another process, for a model of this kind."""
    if not _is_public(model):
        return None
    try:
        return frozenset(json.loads(_file(kind).read_text()))
    except (OSError, ValueError):  # not there, or damaged: then it is found out anew
        return None


def _remember(kind: str, model: Any, found: Ways) -> None:
    if not _is_public(model):
        return
    file = _file(kind)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(sorted(found)))
        partial.replace(file)
    except OSError as error:  # a folder that cannot be written to costs a probe each time, and nothing else
        _log.debug("the ways of %s are not kept: %s", type(model).__name__, error)


def _is_public(model: Any) -> bool:
    """Whether the code of a model is that of an installed package, whose version tells what it does."""
    return all(type(part).__module__.split(".")[0] in ("transformers", "peft") for part in (model, inner(model)))

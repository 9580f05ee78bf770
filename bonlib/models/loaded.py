"""Loading language models and classifiers from a folder or the hub, through the Auto classes of `transformers`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import torch

from bonlib.models.fitness import check_causal, check_classifier, check_tokenizer
from bonlib.models.kernels import keep_freed_memory
from bonlib.models.loading import Kind, load_files
from bonlib.models.peft_folders import adapter_settings, virtual_tokens
from bonlib.models.places import locate
from bonlib.models.texts import encode_prompts
from bonlib.models.ways import vocabulary

_WITHOUT_EFFECT = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures"}
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")  # by any name


@dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """A model and its tokenizer, with what is needed to tell later which ones they were.

    Attributes:
        model: a `transformers` model in evaluation mode, on its device.
        tokenizer: its tokenizer.
        name: folder name or hub name it came from.
        commit: the hub commit that was loaded; None for a folder.
    """

    model: Any
    tokenizer: Any
    name: str
    commit: str | None = None

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"{self.name}: {type(self.model).__name__}, {size:.1f} M parameters, {dtype}, {self.device.type}"

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    @cached_property
    def context(self) -> int:
        """How many tokens of text the model can attend to."""
        config = self.model.config.get_text_config()
        named = (getattr(config, name, None) for name in _CONTEXTS)
        limits = [limit for limit in named if isinstance(limit, int) and limit > 0][:1]
        # RoBERTa and its kin count positions from behind that of the padding.
        limits += [
            len(table.weight) - table.padding_idx - 1
            for name, table in self.model.named_modules()
            if "position" in name and hasattr(table, "weight") and getattr(table, "padding_idx", None) is not None
        ]
        return min(limits) - virtual_tokens(self.model) if limits else sys.maxsize

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return vocabulary(self.model)

    @property
    def pad_token_id(self) -> int:
        """The token to fill up with, which is masked: the tokenizer's if the model knows it, else any."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return next(token for token in (pad, *self.end_token_ids, 0) if token is not None and token < self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """A hash of weights, settings, number format, kind of device and tokenizer: all that a draw depends on.

        Computed anew each time, since training changes weights in place.
        """
        config = self.model.config.to_dict()
        named = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
        ends, adapter = self.end_token_ids, adapter_settings(self.model)
        identity = [type(self.model).__name__, self.device.type, named, ends, self.tokenizer.padding_side]
        identity += [adapter] if adapter else []
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        table = json.loads(backend.to_str()) if backend else {"vocab": self.tokenizer.get_vocab()}
        for key in ("padding", "truncation"):  # set anew by every call of the tokenizer
            table.pop(key, None)
        digest.update(json.dumps(table, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def end_token_ids(self) -> list[int]:
        """The tokens that end a response: those of the generation settings and the tokenizer's."""
        return end_token_ids(getattr(self.model, "generation_config", None), self.tokenizer, self.vocabulary)

    def encode(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Return the token ids of each prompt; arguments and errors as of `bonlib.models.texts.encode_prompts`."""
        return encode_prompts(self.tokenizer, self.context, prompts, max_new_tokens, vocabulary=self.vocabulary)


def end_token_ids(generation_config: Any, tokenizer: Any, vocabulary: int = sys.maxsize) -> list[int]:
    """Return the tokens that end a response: those of the generation settings and the tokenizer, if they are known."""
    ends = getattr(generation_config, "eos_token_id", None)
    named = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    named.append(getattr(tokenizer, "eos_token_id", None))
    return [int(end) for end in dict.fromkeys(named) if end is not None and 0 <= end < vocabulary]


def pick_device(wanted: str | int | torch.device = "auto") -> str:
    """Return the device to compute on: `wanted`, or the best one of this machine for "auto" (CUDA, MPS, CPU).

    Args:
        wanted: "auto", "cpu", "cuda", "cuda:1", "mps", the number of a CUDA device, or a `torch.device`.

    Raises:
        ValueError: if `wanted` is unknown, or this machine does not have it.
    """
    available = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if isinstance(wanted, Integral) and not isinstance(wanted, bool):
        wanted = f"cuda:{wanted}"
    name = str(wanted) if isinstance(wanted, str | torch.device) else ""
    if name == "auto":
        return next(device for device, count in available.items() if count)
    kind, _, place = name.partition(":")
    if not (available.get(kind) and (not place or (place.isdecimal() and int(place) < available[kind]))):
        present = [device for device, count in available.items() if count]
        raise ValueError(f"device is {wanted!r}; this machine has {', '.join(present)}: use one of them or 'auto'")
    return name


def pick_dtype(wanted: str | torch.dtype, device: str) -> torch.dtype:
    """Return the number format to compute in: float32 or bfloat16, or for "auto" bfloat16 where it pays.

    It pays on CUDA, and nowhere else without being asked for: small models lose more to conversions than they gain.

    Args:
        wanted: "auto", "float32", "bfloat16", or the `torch.dtype`.
        device: as `pick_device` returns it.

    Raises:
        ValueError: if `wanted` is none of them.
    """
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    name = str(wanted).removeprefix("torch.")
    if name not in formats:
        raise ValueError(f"dtype is {wanted!r}; it must be 'auto', 'float32' or 'bfloat16'")
    return formats[name]


def load_language_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | int | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: bundled model, folder or hub name; see `locate`.
        revision: hub branch, tag or commit; the commit it stands for is recorded. Ignored for folders.
        device: "auto", "cpu", "cuda", "mps"; see `pick_device`.
        dtype: "auto", "float32", "bfloat16"; see `pick_dtype`.

    Raises:
        FileNotFoundError: if the model is not there, or the hub cannot be reached.
        ValueError: if it is no causal language model of text, or its files are not whole.
    """
    return _load("causal", name, revision, device, dtype)


def load_classifier(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | int | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    outputs: int | None = None,
) -> LoadedModel:
    """Load a sequence classifier and its tokenizer.

    Args:
        name: as in `load_language_model`, as are those not named here.
        revision: likewise.
        device: likewise.
        dtype: likewise; the head of an adapter stays in float32, or it would round different rewards to equal ones.
        outputs: of a new head, still to be trained, in place of any that the model has.

    Raises:
        FileNotFoundError: as in `load_language_model`.
        ValueError: if it is no classifier of text, its head was never trained, or its files are not whole.
    """
    return _load("classifier", name, revision, device, dtype, outputs)


def _load(
    kind: Kind,
    name: str | os.PathLike[str],
    revision: str | None,
    device: str | int | torch.device,
    dtype: str | torch.dtype,
    outputs: int | None = None,
) -> LoadedModel:
    keep_freed_memory()
    device = pick_device(device)
    with without_bars():
        model, tokenizer, commit = load_files(
            kind, locate(name), pick_dtype(dtype, device), revision=revision, outputs=outputs
        )
    if tokenizer.pad_token_id is None:  # GPT-2 has none; padded places are masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    loaded = LoadedModel(model.to(device).eval(), tokenizer, os.fspath(name), commit)
    check_tokenizer(loaded)
    text_config = model.config.get_text_config()
    if getattr(text_config, "pad_token_id", None) is None and tokenizer.pad_token_id is not None:
        text_config.pad_token_id = loaded.pad_token_id
    (check_causal if kind == "causal" else check_classifier)(loaded)
    return loaded


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars that loading shows: in a notebook's output they would stay as broken widgets."""
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_bars:
            logging.enable_progress_bar()

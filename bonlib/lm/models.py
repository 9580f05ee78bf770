"""Loading language models and classifiers from a folder or the hub, through the Auto classes of `transformers`."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bonlib.lm.gguf import PACKAGED, packaged_file, unpacked
from bonlib.lm.kernels import keep_freed_memory

_WITHOUT_EFFECT = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures"}
BUNDLED = Path(__file__).resolve().parents[2] / "data" / "models"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and its tokenizer, with what is needed to tell later which ones they were.

    Attributes:
        model: a `transformers` model in evaluation mode, on its device.
        tokenizer: its tokenizer, which always has a padding token.
        name: folder name or hub name it came from.
        commit: the hub commit that was loaded; None for a folder.
    """

    model: Any
    tokenizer: Any
    name: str
    commit: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    @property
    def context(self) -> int:
        """How many tokens the model can attend to."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or sys.maxsize)

    @property
    def fingerprint(self) -> str:
        """A hash of weights, settings, number format, kind of device and tokenizer: all that a draw depends on.

        Computed anew each time, since training changes weights in place.
        """
        config = self.model.config.to_dict()
        named = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
        ends = self.end_token_ids
        identity = [type(self.model).__name__, self.device.type, named, ends, self.tokenizer.padding_side]
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
        """The tokens that end a response: those of the generation settings, else the tokenizer's."""
        return end_token_ids(getattr(self.model, "generation_config", None), self.tokenizer)


def end_token_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a response: those of the generation settings, else the tokenizer's."""
    ends = generation_config.eos_token_id if generation_config is not None else None
    if ends is None:
        ends = tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def chat_prompt(tokenizer: Any, request: str) -> str:
    """Return a user's request as the text that a chat model continues with its answer.

    Args:
        tokenizer: of the model, with a chat template.
        request: what the user writes.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template: prompt such a model with plain text"
        )
    messages = [{"role": "user", "content": request}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # Some templates write the first token that their tokenizer puts before every text anyway.
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if begins else text


def takes(model: Any, name: str) -> bool:
    """Return whether a model's forward pass takes an argument; an adapter hides those of the model it is on."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(inner.forward).parameters


def locate(name: str | os.PathLike[str]) -> str:
    """Return where a model is: a folder, or unchanged if it is a hub name.

    Args:
        name: "imdb-gpt2-tiny" (any folder under data/models), "smollm2-135m-instruct" (from the package that carries
            it), a path to a folder (of a model, or of an adapter that names its model) or a GGUF file, or a hub name
            such as "lvwerra/gpt2-imdb".

    Raises:
        FileNotFoundError: if `name` can only be a folder and there is none, or its package is not installed.
    """
    text = os.fspath(name)
    for folder in (BUNDLED / text, Path(text).expanduser()):
        if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            return str(folder)
        if folder.suffix == ".gguf" and folder.is_file():
            return str(unpacked(folder))
    if text in PACKAGED:
        return str(unpacked(packaged_file(text)))
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists():
        return text
    ours = [*sorted(path.parent.name for path in BUNDLED.glob("*/*config.json")), *PACKAGED]
    raise FileNotFoundError(
        f"model {text!r} is neither one of the workbook's ({', '.join(ours)}), nor a folder with a config.json or a "
        "GGUF file, nor a hub name (owner/name): check the spelling, or make the bundled ones with "
        "`python -m bonlib pretrain`"
    )


def pick_device(wanted: str = "auto") -> str:
    """Return the device to compute on: `wanted`, or the best one of this machine for "auto" (CUDA, MPS, CPU).

    Raises:
        ValueError: if `wanted` is unknown, or this machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, present in available.items() if present)
    kind = wanted.split(":")[0]
    if not available.get(kind, False):
        present = [device for device, there in available.items() if there]
        raise ValueError(f"device is {wanted!r}; this machine has {', '.join(present)}: use one of them or 'auto'")
    return wanted


def pick_dtype(wanted: str, device: str) -> torch.dtype:
    """Return the number format to compute in: float32 or bfloat16, or for "auto" bfloat16 where it pays.

    It pays on CUDA, and nowhere else without being asked for: small models lose more to conversions than they gain.
    """
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if wanted not in formats:
        raise ValueError(f"dtype is {wanted!r}; it must be 'auto', 'float32' or 'bfloat16'")
    return formats[wanted]


def load_language_model(
    name: str | os.PathLike[str], *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: bundled model, folder or hub name; see `locate`.
        revision: hub branch, tag or commit; the commit it stands for is recorded. Ignored for folders.
        device: "auto", "cpu", "cuda", "mps".
        dtype: "auto", "float32", "bfloat16".

    Raises:
        FileNotFoundError: if the model is not there, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM.from_pretrained, name, revision, device, dtype)


def load_classifier(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    outputs: int | None = None,
) -> LoadedModel:
    """Load a sequence classifier and its tokenizer.

    Args:
        name: as in `load_language_model`, as are those not named here.
        revision: likewise.
        device: likewise.
        dtype: likewise; the head of an adapter stays in float32, or it would round different rewards to equal ones.
        outputs: of a new head, still to be trained, in place of any that the model has.
    """
    from transformers import AutoModelForSequenceClassification

    load = AutoModelForSequenceClassification.from_pretrained
    return _load(load if outputs is None else _with_new_head(load, outputs), name, revision, device, dtype)


def _load(
    load: Callable[..., Any], name: str | os.PathLike[str], revision: str | None, device: str, dtype: str
) -> LoadedModel:
    keep_freed_memory()
    device = pick_device(device)
    with without_bars():
        model, tokenizer, commit = _load_files(load, name, locate(name), revision, pick_dtype(dtype, device))
    if tokenizer.pad_token_id is None:  # GPT-2 has none; padded places are masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model.to(device).eval(), tokenizer, os.fspath(name), commit)


def _load_files(
    load: Callable[..., Any], name: Any, where: str, revision: str | None, dtype: torch.dtype
) -> tuple[Any, Any, Any]:
    """Model, tokenizer and, from the hub, the commit."""
    from transformers import AutoTokenizer

    if (Path(where) / "adapter_config.json").is_file():
        return _load_adapter(load, Path(where), dtype)
    pinned: Any = None
    try:
        if not Path(where).is_dir():
            from huggingface_hub import resolve_revision

            pinned = resolve_revision(where, revision=revision)
        # Pickled weights can run code on loading, hence safetensors only; the hub offers a conversion of most others.
        model = load(where, revision=pinned, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(where, revision=pinned, trust_remote_code=False)
    except Exception as error:  # the hub's client raises a dozen kinds; each means "not to be had"
        if isinstance(error, (ValueError, KeyError)) and Path(where).is_dir():
            raise
        raise FileNotFoundError(
            f"model {os.fspath(name)!r} could not be loaded: {error}. Is the machine online, the name right, and the "
            "weights there as safetensors? A folder downloaded elsewhere works too: give its path as the name"
        ) from error
    return model, tokenizer, getattr(pinned, "resolved", None)


def _load_adapter(load: Callable[..., Any], folder: Path, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """A model with an adapter on it, from the folder of the adapter; tokenizer and commit are those of the model."""
    import peft
    from safetensors import safe_open

    config = json.loads((folder / "adapter_config.json").read_text())
    base, revision = config["base_model_name_or_path"], config.get("revision")
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        heads = [weights.get_slice(key).get_shape()[0] for key in weights.keys() if key.endswith("score.weight")]  # noqa: SIM118
    shaped = _with_new_head(load, heads[0]) if heads else load
    model, tokenizer, commit = _load_files(shaped, base, locate(base), revision, dtype)
    if heads:
        model.score.float()
    with warnings.catch_warnings():  # peft asks transformers for a property by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return peft.PeftModel.from_pretrained(model, folder), tokenizer, commit


def _with_new_head(load: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """A way of loading that gives the model another head and does not complain that its weights are new."""
    from transformers.utils import logging

    def loaded(*args: Any, **options: Any) -> Any:
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            model = load(*args, num_labels=outputs, **options)
        finally:
            logging.set_verbosity(level)
        # An adapter keeps the head that it replaces; were that random, no two loads would have one fingerprint.
        model.score.weight.data.zero_()
        return model

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

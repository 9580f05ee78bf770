"""From files to a model and its tokenizer, or to an error that says what is missing and what to take instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from bonlib.checks import one_line
from bonlib.models.peft_folders import TOKENIZER_FILES, Shapes, put_on, read_adapter
from bonlib.models.places import locate_base
from bonlib.models.ways import UnfitModelError

Kind = Literal["causal", "classifier"]
Files = tuple[Any, Any, str | None]  # model, tokenizer and, from the hub, the commit
_JUDGES = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice)$")
_ODD = 7919  # outputs that no layer has by chance
KINDS = {"causal": "a causal language model", "classifier": "a sequence classifier"}


def load_files(
    kind: Kind,
    where: str,
    dtype: torch.dtype,
    *,
    revision: str | None = None,
    outputs: int | None = None,
    supplied: Iterable[str] = (),
) -> Files:
    """Load a model and its tokenizer, with the adapter if the files are one's.

    Args:
        kind: what the model is asked to be.
        where: a folder, or a hub name.
        dtype: of the weights.
        revision: hub branch, tag or commit; ignored for folders.
        outputs: of a classifier's new head; None to load that of the files.
        supplied: weights that need not be in the files, since they come from an adapter's, by their name there.

    Raises:
        FileNotFoundError: if something is not there, or the hub cannot be reached.
        ValueError: if the model cannot be what it is asked to be, or weights are missing.
    """
    from transformers import AutoConfig

    pinned: Any = None
    if not Path(where).is_dir():
        where, pinned = _from_hub(where, revision)
    if (Path(where) / "adapter_config.json").is_file():
        return _load_with_adapter(kind, Path(where), dtype, outputs, getattr(pinned, "resolved", None))
    config = _said_once(where, AutoConfig.from_pretrained, where, revision=pinned, trust_remote_code=False)
    _refuse_what_cannot_be(kind, where, config)
    options: dict[str, Any] = {"revision": pinned, "dtype": dtype, "trust_remote_code": False}
    # Pickled weights can run code on loading, hence safetensors only; the hub offers a conversion of most others.
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}

    def load(**labels: int) -> tuple[Any, dict[str, tuple[Any, Any]], list[str]]:
        with _quiet_reports():
            model, info = _said_once(where, _auto_model(kind).from_pretrained, where, **options, **labels)
        mismatched = {key: (tuple(there), tuple(wanted)) for key, there, wanted in info["mismatched_keys"]}
        return model, mismatched, sorted({*info["missing_keys"], *mismatched})

    model, mismatched, missing = load() if outputs is None else load(num_labels=outputs)
    if mismatched and kind == "classifier" and outputs is None:
        last = mismatched.get(f"{_last_layer(model, model.config.num_labels)}.weight")
        if last:  # some configurations do not keep the number of labels
            model, mismatched, missing = load(num_labels=last[0][0])
    if mismatched and outputs is None:
        key, (there, wanted) = next(iter(mismatched.items()))
        raise ValueError(
            f"model {where!r} has {key!r} of shape {there} in its weights, but {wanted} by its config.json: take files "
            "that belong together"
        )
    _refuse_missing(model, where, missing, list(supplied), new_head=outputs is not None and not supplied)
    if outputs is not None:
        _settle_head(model, missing, outputs)
    return model, load_tokenizer(where, pinned), getattr(pinned, "resolved", None)


def load_tokenizer(where: str, revision: Any = None) -> Any:
    """Load the tokenizer of a folder or a hub name; a FileNotFoundError says if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
        # Without files, one without words is made up from the configuration.
        reason = "" if len(tokenizer) > len(set(tokenizer.all_special_ids)) else "its vocabulary is empty"
    except Exception as error:  # each class of tokenizers raises its own
        reason = one_line(error)
    if reason:
        raise FileNotFoundError(
            f"{where!r} has no tokenizer that can be read ({reason}): put the model's there, by "
            "`tokenizer.save_pretrained(folder)`"
        )
    return tokenizer


def _from_hub(name: str, revision: str | None) -> tuple[str, Any]:
    """Where a model of the hub is to be loaded from, and its commit: an adapter is fetched whole."""
    from huggingface_hub import resolve_revision, snapshot_download
    from transformers.utils import cached_file

    try:
        pinned = resolve_revision(name, revision=revision)
        if cached_file(name, "adapter_config.json", revision=pinned, _raise_exceptions_for_missing_entries=False):
            return snapshot_download(name, revision=pinned, ignore_patterns=["*.bin", "*.pt", "*.pth"]), pinned
    except Exception as error:  # the hub's client raises a dozen kinds; each means "not to be had"
        raise _not_to_be_had(name, error) from error
    return name, pinned


def _not_to_be_had(name: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"model {name!r} could not be loaded: {one_line(error)}. Is the machine online, the name right, and the "
        "weights there as safetensors? A folder downloaded elsewhere works too: give its path as the name"
    )


def _said_once(where: str, load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a loader returns, or its error in one line."""
    try:
        return load(*arguments, **options)
    except (ValueError, KeyError, RuntimeError, ImportError) as error:  # files that are there, and not as they must be
        if isinstance(error, OSError) or not Path(where).is_dir():
            raise _not_to_be_had(where, error) from error
        raise ValueError(f"model {where!r} could not be loaded: {one_line(error)}") from error
    except Exception as error:
        raise _not_to_be_had(where, error) from error


def _refuse_what_cannot_be(kind: Kind, where: str, config: Any) -> None:
    classes = config.architectures or ["no class named"]
    named = f"{where!r} is of type {config.model_type} ({', '.join(classes)})"
    if kind == "causal" and config.is_encoder_decoder:
        raise UnfitModelError(
            f"{named}, an encoder and a decoder: a prompt would have to go to the one and its response to the other, "
            "which is not supported; take a decoder alone, as those of AutoModelForCausalLM are"
        )
    if kind == "causal" and getattr(config, "add_cross_attention", False):
        raise UnfitModelError(
            f"{named} whose layers attend to an encoder's output, which a prompt does not have: take a decoder without "
            "cross-attention"
        )
    if kind == "causal" and all(map(_JUDGES.search, classes)):
        raise UnfitModelError(
            f"{named}, which was trained to judge texts and not to write them: take a causal language model, or load "
            "this one by load_classifier"
        )
    if type(config) not in _auto_model(kind)._model_mapping:
        raise UnfitModelError(
            f"{named}, of which transformers has no {KINDS[kind].removeprefix('a ')}: take {KINDS[kind]} of text, such "
            f"as {'gpt2 or llama' if kind == 'causal' else 'distilbert'}"
        )


def _refuse_missing(model: Any, where: str, missing: list[str], supplied: list[str], *, new_head: bool) -> None:
    """Refuse a model that would have random weights; some may come from an adapter, or be those of a new head."""

    def is_head(key: str) -> bool:
        return not key.startswith(f"{model.base_model_prefix}.") or ".pooler." in key

    lacking = [key for key in missing if not any(name == key or name.endswith(f".{key}") for name in supplied)]
    if new_head:
        lacking = [key for key in lacking if not is_head(key)]
    if not lacking:
        return
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    named = f"{where!r} as {type(model).__name__} lacks the weights {lacking[0]!r}{more}"
    if hasattr(model.config, "num_labels") and all(map(is_head, lacking)) and "Classification" in type(model).__name__:
        raise UnfitModelError(
            f"{named}: its head was never trained, and its rewards would be random; take a trained classifier, or "
            "train one on load_classifier(…, outputs=1)"
        )
    raise UnfitModelError(f"{named}, which would be random: take files that are whole")


def _settle_head(model: Any, missing: Iterable[str], outputs: int) -> None:
    """Make a new head the same at every load: seeded layers, and zeros in the last, from which training starts.

    Were it random, no two loads would have one fingerprint: an adapter keeps the head that it replaces.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name in dict.fromkeys(key.rpartition(".")[0] for key in missing):
            if hasattr(model.get_submodule(name), "reset_parameters"):
                model.get_submodule(name).reset_parameters()
        for weight in model.get_submodule(_last_layer(model, outputs)).parameters():
            weight.zero_()


def _last_layer(model: Any, outputs: int) -> str:
    """The name of the layer of a classifier that gives its outputs."""
    body = f"{model.base_model_prefix}."
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == outputs and not name.startswith(body)
    ]
    if not layers:
        raise UnfitModelError(f"{type(model).__name__} has no last layer of {outputs} outputs: take another classifier")
    return layers[-1]


def _load_with_adapter(kind: Kind, folder: Path, dtype: torch.dtype, outputs: int | None, commit: str | None) -> Files:
    if outputs is not None:
        raise ValueError(
            f"outputs is {outputs}, but {str(folder)!r} is an adapter, which has the head it was trained with: leave "
            "outputs out, or merge the adapter into its model first (`merge_and_unload`)"
        )
    config, shapes = read_adapter(kind, folder)
    base, revision = config["base_model_name_or_path"], config.get("revision")
    where = locate_base(folder, base)
    if (Path(where) / "adapter_config.json").is_file():
        raise ValueError(
            f"adapter {str(folder)!r} stands on {base!r}, which is an adapter too: merge that one into its model "
            "first (`merge_and_unload`)"
        )
    heads = _saved_outputs(where, revision, shapes) if kind == "classifier" else None
    with _quiet_reports():
        model, tokenizer, base_commit = load_files(
            kind, where, dtype, revision=revision, outputs=heads, supplied=shapes
        )
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            tokenizer = load_tokenizer(str(folder))
        model = put_on(model, folder, config, shapes, base_commit)
    return model, tokenizer, commit or base_commit


def _saved_outputs(where: str, revision: str | None, shapes: Shapes) -> int | None:
    """How many outputs the head has that an adapter's file holds; None if it holds none."""
    from transformers import AutoConfig

    config = _said_once(where, AutoConfig.from_pretrained, where, revision=revision, num_labels=_ODD)
    _refuse_what_cannot_be("classifier", where, config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = _last_layer(_auto_model("classifier").from_config(config), _ODD)
    return next((shape[0] for key, shape in shapes.items() if key.endswith(f".{name}.weight")), None)


def _auto_model(kind: Kind) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForSequenceClassification


@contextmanager
def _quiet_reports() -> Iterator[None]:
    """Hide the reports of transformers on weights that are new: those that matter are errors here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)

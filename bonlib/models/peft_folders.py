"""Adapters of `peft` and their folders: loaded whole or refused, told apart, and trained as `peft` would."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bonlib.checks import one_line
from bonlib.models.places import lasting_name

Shapes = dict[str, list[int]]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Settings of an adapter that its weights tell as well, or that change nothing once it is trained.
_TOLD = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_dropout",
    "modules_to_save", "peft_version", "r", "revision", "target_modules", "task_type",
}  # fmt: skip


def read_adapter(kind: str, folder: Path) -> tuple[dict[str, Any], Shapes]:
    """Return the settings of an adapter, and the shapes of its weights by their names in its file.

    Args:
        kind: what the model is asked to be, "causal" or "classifier".
        folder: with adapter_config.json and adapter_model.safetensors.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if it names no model, or is of another kind.
    """
    from safetensors import safe_open

    config = json.loads((folder / "adapter_config.json").read_text())
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"adapter {str(folder)!r} has no adapter_model.safetensors (pickled weights can run code, and are not "
            "loaded): save it again with `save_pretrained`"
        )
    if not config.get("base_model_name_or_path"):
        raise ValueError(
            f"adapter {str(folder)!r} names no model that it stands on: put its name into base_model_name_or_path of "
            "adapter_config.json"
        )
    task = config.get("task_type")
    if task not in (None, "FEATURE_EXTRACTION", {"causal": "CAUSAL_LM", "classifier": "SEQ_CLS"}[kind]):
        remedy = {"CAUSAL_LM": "load_language_model", "SEQ_CLS": "load_classifier"}.get(task, "peft itself")
        raise ValueError(f"adapter {str(folder)!r} was trained for {task}, not as a {kind} model: take {remedy}")
    with safe_open(weights, "pt") as file:
        return config, {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def put_on(model: Any, folder: Path, config: dict[str, Any], shapes: Shapes, commit: str | None) -> Any:
    """Return a model, of some commit of the hub, with an adapter on it, whose settings and shapes `read_adapter` gave.

    Raises:
        ValueError: if a weight of the adapter is missing or has no place.
    """
    import peft

    own_embeddings = _resize_embeddings(model, folder, shapes, config.get("modules_to_save") or ())
    where = model.name_or_path
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # a property by its old name
        try:
            adapted = peft.PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
            unplaced = []
            if not config_of(adapted).is_prompt_learning:  # `peft` passes over weights that have no place
                again = adapted.load_adapter(str(folder), adapted.active_adapter, torch_device="cpu")
                unplaced = list(again.unexpected_keys)
        except (UserWarning, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"adapter {str(folder)!r} does not fit the model that it names, {where!r}, or is not whole "
                f"({one_line(error)}): take the model it was trained on, and its files anew"
            ) from error
    if unplaced:
        raise ValueError(
            f"adapter {str(folder)!r} has the weights {unplaced[0]!r}, for which {where!r} has no place: take the "
            "model it was trained on"
        )
    config_of(adapted).base_model_name_or_path = lasting_name(where)
    config_of(adapted).revision = commit
    adapted.keeps_embeddings = own_embeddings  # those that are not the model's below must be saved with the adapter
    _keep_heads_precise(adapted)
    return adapted


def config_of(model: Any) -> Any:
    """Return the settings of the adapter that is at work on a model."""
    return model.peft_config[model.active_adapter]


def virtual_tokens(model: Any) -> int:
    """Return how many places of a model's context its adapter takes up; 0 without one."""
    if not hasattr(model, "peft_config"):
        return 0
    config = config_of(model)
    return int(config.num_virtual_tokens) if config.is_prompt_learning else 0


def adapter_settings(model: Any) -> dict[str, Any]:
    """Return the settings of a model's adapter on which its outputs depend and that its weights do not tell.

    Empty without an adapter, and for LoRA with the scale of 2 that adapters have here.
    """
    if not hasattr(model, "peft_config"):
        return {}
    config = config_of(model)
    usual = type(config)().to_dict()
    found = {name: value for name, value in config.to_dict().items() if name not in _TOLD and value != usual.get(name)}
    scale = getattr(config, "lora_alpha", 0)
    if scale:
        found.pop("lora_alpha", None)
        if scale != 2 * config.r:
            found |= {"r": config.r, "lora_alpha": scale}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in found.items()}


def unfreeze_adapter(model: Any) -> None:
    """Have exactly those weights trained that `peft` would train, in single precision; changes the model in place.

    Raises:
        ValueError: if nothing would be trained.
    """
    config = config_of(model)
    model.requires_grad_(False)
    model.set_adapter(model.active_adapter)
    if config.is_prompt_learning:
        model.prompt_encoder.requires_grad_(True)
    else:  # biases
        model.base_model._mark_only_adapters_as_trainable(model.base_model.model)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    if not learned:
        raise ValueError(
            f"the reference has an adapter of the kind {config.peft_type.value}, of which nothing can be trained: "
            "merge it into its model (`merge_and_unload`), and train that or a new adapter"
        )
    if any(weight.dtype != torch.float32 for weight in learned):
        model.float()


def save_peft_folder(model: Any, folder: Path, commit: str | None) -> None:
    """Write an adapter, so that its folder finds the model below, of this commit of the hub, from anywhere."""
    for config in model.peft_config.values():
        base = config.base_model_name_or_path
        if base:
            config.base_model_name_or_path = lasting_name(base)
            if base.count("/") == 1 and not Path(base).is_dir():
                config.revision = config.revision or commit
    model.save_pretrained(folder, save_embedding_layers=getattr(model, "keeps_embeddings", False))


def _resize_embeddings(model: Any, folder: Path, saved: Shapes, kept: Iterable[str]) -> bool:
    """Give a model as many tokens as its adapter was saved with; return whether the adapter has embeddings itself."""
    try:
        layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    except (NotImplementedError, AttributeError):
        return False
    found, kept_apart = dict[str, str | None](), set[str]()
    for side, layer in layers.items():
        name = next((name for name, module in model.named_modules() if module is layer and layer is not None), None)
        if name is not None:
            ends = f".{name}.weight", f".{name}.base_layer.weight"
            found[side] = next((key for key in saved if key.endswith(ends)), None)
            if name.rpartition(".")[2] in kept:
                kept_apart.add(side)
    rows = [saved[key][0] for key in found.values() if key is not None]
    before = layers["input"].weight.shape[0]
    if rows and max(rows) != before:
        tied = layers["output"] is not None and layers["output"].weight is layers["input"].weight
        needed = {"input"} if tied and "input" not in kept_apart else set(found)
        if any(found[side] is None for side in needed):
            raise ValueError(
                f"adapter {str(folder)!r} has {max(rows)} tokens for {before} of the model below, and only one of the "
                "input and the output embeddings: save both, by save_pretrained(…, save_embedding_layers=True)"
            )
        model.resize_token_embeddings(max(rows), mean_resizing=False)
        with torch.no_grad():  # those below the adapter's are never used; let them be the same at every load
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[before:] = 0
    return any(key is not None for side, key in found.items() if side not in kept_apart)


def _keep_heads_precise(model: Any) -> None:
    """Keep an adapter's head in single precision, or it would round different rewards to equal ones."""
    body = model.get_base_model()
    if not hasattr(body.config, "num_labels") or model.dtype == torch.float32:
        return

    def in_single_precision(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.float() if isinstance(each, torch.Tensor) else each for each in inputs)

    for name, layer in body.named_children():
        if name != body.base_model_prefix and hasattr(layer, "modules_to_save"):
            layer.float()
            layer.register_forward_pre_hook(in_single_precision)

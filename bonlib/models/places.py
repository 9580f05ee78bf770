"""Where models are: the workbook's own, folders, GGUF files, and names of the hub."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from bonlib.models.gguf import PACKAGED, packaged_file, unpacked

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries some of the models inside the package; a checkout has one copy of all of them.
BUNDLED = _PACKAGE / "bundled" if (_PACKAGE / "bundled").is_dir() else _PACKAGE.parent / "data" / "models"
CONFIGS = ("config.json", "adapter_config.json")


def locate(name: str | os.PathLike[str]) -> str:
    """Return where a model is: an absolute path to its folder, or unchanged if it is a hub name.

    Args:
        name: "imdb-gpt2-tiny" (any folder under data/models), "smollm2-135m-instruct" or "all-minilm-l6-v2" (from the
            packages that carry them), a path to a folder (of a model, or of an adapter that names its model) or a GGUF
            file, or a hub name such as "lvwerra/gpt2-imdb".

    Raises:
        FileNotFoundError: if `name` can only be a folder and there is none, or its package is not installed.
    """
    text = os.fspath(name)
    for folder in (BUNDLED / text, Path(text).expanduser()):
        if _holds_a_model(folder):
            return str(folder.absolute())
        if folder.suffix == ".gguf" and folder.is_file():
            return str(unpacked(folder))
    if text in PACKAGED:
        found = packaged_file(text)
        return str(found if found.is_dir() else unpacked(found))
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists():
        return text
    ours = [*sorted({path.parent.name for path in BUNDLED.glob("*/*config.json")}), *PACKAGED]
    below = sorted(path.parent.name for path in Path(text).expanduser().glob("*/adapter_config.json"))
    inside = f"; it has adapters in folders of its own, of which one can be named: {', '.join(below)}" if below else ""
    raise FileNotFoundError(
        f"model {text!r} is neither one of the workbook's ({', '.join(ours)}), nor a folder with a config.json or a "
        "GGUF file, nor a hub name (owner/name): check the spelling, or make the bundled ones with "
        f"`python -m bonlib pretrain`{inside}"
    )


def locate_base(folder: Path, name: str) -> str:
    """Return where the model below an adapter is; a relative path may start at the adapter's folder or above it."""
    start = next((above for above in (folder, *folder.absolute().parents) if _holds_a_model(above / name)), None)
    try:
        return locate(name)
    except FileNotFoundError as error:
        if start is not None:
            return str((start / name).absolute())
        raise FileNotFoundError(
            f"adapter {str(folder)!r} stands on {name!r}, which is not there ({error}); or put its place into "
            f"base_model_name_or_path of {folder / 'adapter_config.json'}"
        ) from error


def lasting_name(where: str) -> str:
    """Return a name by which a model is found from any working directory, and a bundled one on any machine."""
    folder = Path(where).expanduser()
    if not folder.is_dir():
        return where
    folder = folder.absolute()
    if folder.parent == BUNDLED:
        return folder.name
    if name := next((name for name in PACKAGED if _installed(name) == folder), None):
        return name
    if folder.parent == user_cache_path("bonlib") / "models":
        stems = {Path(packaged.file).stem: name for name, packaged in PACKAGED.items()}
        return stems.get(folder.name.rpartition("-")[0], str(folder))
    return str(folder)


def _installed(name: str) -> Path | None:
    """Where the file or folder of a packaged model is, if its package is installed."""
    try:
        return packaged_file(name)
    except FileNotFoundError:
        return None


def _holds_a_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CONFIGS)

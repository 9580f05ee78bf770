"""Training methods, one file each: formula, settings, and its row of the table, `METHODS`."""

from importlib import import_module
from pathlib import Path

from bonlib.methods.registry import METHODS, Method, get_method

__all__ = ["METHODS", "Method", "get_method"]
for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"bonlib.methods.{file.stem}")  # each registers what it has

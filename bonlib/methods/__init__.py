"""Training methods, one file each: formula, settings, and its row of the table, `METHODS`."""

from bonlib.methods.registry import METHODS, Method, get_method, load_all

__all__ = ["METHODS", "Method", "get_method"]
load_all()

"""What the library does with a model, and what it leaves out, as a table to read."""

from __future__ import annotations

from typing import Any

import click

from bonlib.models import classifiers, decoding, reading
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model
from bonlib.models.ways import NEEDS, TASKS, WAYS, UnfitModelError, inner, proven

assert classifiers  # these enter their tasks on import
assert decoding
assert reading


def explain(loaded: LoadedModel | str, *, length: int = 64) -> str:
    """Return a table of the fast ways to run a model, and which of them are right for it.

    Args:
        loaded: a causal language model, or its name, or a classifier.
        length: tokens of the longest text in question, as windows may matter to it.
    """
    loaded = load_language_model(loaded) if isinstance(loaded, str) else loaded
    judges = hasattr(loaded.model.config, "num_labels") and "Classification" in type(inner(loaded.model)).__name__
    tasks = ["judging"] if judges else ["drawing", "responses"]
    if not judges and any(weight.requires_grad for weight in loaded.model.parameters()):
        tasks.append("learning")
    columns, notes = {}, []
    for task in tasks:
        try:
            columns[task] = proven(loaded.model, task, length=length)
        except UnfitModelError as error:
            notes.append(f"{task}: refused, {error}")
    used = [way for way in WAYS if any(way in TASKS[task].ways for task in columns)]
    rows = [("way", *columns, "what it is")]
    for way in used:
        marks = [_mark(loaded.model, way, task, kept) for task, kept in columns.items()]
        what, cost = WAYS[way]
        rows.append((way, *marks, f"{what}; else {cost}" if "left out" in marks else what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    about = f"{loaded.name}: {type(inner(loaded.model)).__name__}, {loaded.model.dtype}, {loaded.device.type}"
    return "\n".join([about.replace("torch.", ""), *lines, *notes])


def _mark(model: Any, way: str, task: str, kept: frozenset[str]) -> str:
    if way not in TASKS[task].ways or not TASKS[task].applies(model, way):
        return "-"
    if way in kept:
        return "yes"
    return "left out" if NEEDS.get(way, way) in {*kept, way} else "-"


@click.command("explain")
@click.argument("model")
@click.option("--classifier", is_flag=True, help="it is a reward model, not a language model")
@click.option("--revision", help="commit, tag or branch of the hub")
def explain_command(model: str, classifier: bool, revision: str | None) -> None:
    """Say which fast ways are right for a MODEL.

    MODEL is a bundled name, a folder, a GGUF file or a hub name.
    """
    load = load_classifier if classifier else load_language_model
    print(explain(load(model, revision=revision)))

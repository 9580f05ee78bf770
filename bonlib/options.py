"""How the commands read what they are given: options with checks that name what is wrong, and help with examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bonlib.checks import literal

Reader = Callable[[click.Context, click.Parameter, Any], Any]
Command = Callable[..., Any]


def folder(context: click.Context, option: click.Parameter, text: str | None) -> Path | None:
    """Read an option that names a folder, which need not be there yet."""
    path = Path(text).expanduser() if text else None
    if path and path.exists() and not path.is_dir():
        raise ValueError(f"--{option.name}: {text!r} is a file: name a folder")
    return path


def checked(check: Callable[..., Any], **limits: float) -> Reader:
    """Return a reader of an option's number by `bonlib.checks.number` or `whole`, which say what is wrong with it."""

    def read(context: click.Context, option: click.Parameter, text: str | None) -> Any:
        name = str(option.name).replace("_", "-")
        return None if text is None else check(f"--{name}: {name}", literal(text), **limits)

    return read


def assignments(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return what an option that is given several times assigns, by name.

    Args:
        option: how it is written, for messages.
        texts: each name=value.

    Raises:
        ValueError: if one has another form, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{option} is {text!r}; it must have the form name=value")
        if name in found:
            raise ValueError(f"{option} has {name!r} twice: leave one out")
        found[name] = literal(value)
    return found


def named_option(name: str, **about: Any) -> Callable[[Command], Command]:
    """Return an option that is called as its parameter is."""
    return click.option(f"--{name.replace('_', '-')}", name, **about)


def options_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in that order."""

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def examples(*lines: str) -> str:
    """Return what stands under a command's help, line by line."""
    codes = "exit codes: 0 well; 1 something failed, what was done is kept; 2 wrong usage or file; 130 interrupted"
    return "\n".join(["\b", *lines, "", "\b", codes])

"""What arguments must be: numbers of Python, NumPy or torch are taken alike, and what is out of range is named."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def plain(value: object) -> Any:
    """Return a single number of NumPy or torch as Python's own; anything else as it is."""
    scalar: Any = value
    return scalar.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def whole(name: str, value: object, least: int = 0, most: float = math.inf, *, what: str = "it") -> int:
    """Return a whole number as an int, such as a count or a seed.

    Args:
        name: of the argument.
        value: 3, 3.0 or a number of NumPy or torch; True is none.
        least: smallest that is allowed.
        most: largest that is allowed.
        what: the argument's meaning, which begins the second half of the message.

    Raises:
        ValueError: if it is not whole, or out of range.
    """
    number_ = plain(value)
    if _is_number(number_) and math.isfinite(number_) and number_ == int(number_) and least <= number_ <= most:
        return int(number_)
    limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    raise ValueError(f"{name} is {number_!r}; {what} must be a whole number {limits}")


def number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    what: str = "it",
) -> float:
    """Return a finite number as Python's own, an int as an int: a setting keeps the identity that it was stored by.

    Args:
        name: of the argument.
        value: a number of Python, NumPy or torch; True is none.
        least: smallest that is allowed.
        above: what it must be larger than.
        most: largest that is allowed.
        below: what it must be smaller than.
        what: the argument's meaning, which begins the second half of the message.

    Raises:
        ValueError: if it is not a finite number in range.
    """
    number_ = plain(value)
    if _is_number(number_) and math.isfinite(number_):
        python = number_ if isinstance(number_, int) else float(number_)
        if least <= python <= most and above < python < below:
            return python
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
    raise ValueError(f"{name} is {number_!r}; {what} must be a finite number{' ' if wanted else ''}{wanted}")


def flag(name: str, value: object) -> bool:
    """Return True or False, which NumPy may have made, or raise a ValueError."""
    given = plain(value)
    if not isinstance(given, bool):
        raise ValueError(f"{name} is {given!r}; it must be True or False")
    return given


def one_of(name: str, value: Any, choices: Iterable[object]) -> Any:
    """Return a word or a number that is one of those, or raise a ValueError that names them."""
    if value not in (known := tuple(choices)):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")
    return value


def literal(text: str) -> Any:
    """Return what a text of the command line stands for in Python, such as a number; the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def strings(name: str, values: object, least: int = 0) -> list[str]:
    """Return a list of texts.

    Args:
        name: of the argument, a plural.
        values: a sequence of texts, not one text.
        least: fewest that are allowed, 0 or 1.

    Raises:
        ValueError: if it is no list, or one of its items is no text or cannot be written as UTF-8.
    """
    is_list = hasattr(values, "__len__") and hasattr(values, "__iter__") and not isinstance(values, str | bytes | dict)
    items: Sequence[Any] = list(values) if is_list else []  # type: ignore[call-overload]
    if not is_list or len(items) < least:
        wanted = f"at least one {name.removesuffix('s')}" if least else "texts"
        raise ValueError(f"{name} is {values!r}; it must be a list of {wanted}")
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f"{name}[{place}] is {item!r}; it must be a text: leave empty cells out")
        if not item.isascii() and any("\ud800" <= letter <= "\udfff" for letter in item):
            raise ValueError(
                f"{name}[{place}] is {item!r}, with half of a character (a lone surrogate): read its file as UTF-8 anew"
            )
    return [str(item) for item in items]


def shown(value: object) -> str:
    """Return a value as one short line, for a message."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def one_line(error: Exception) -> str:
    """Return an error's kind and message as one line, for the message of another."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:300]}…'}"


def settle(settings: object, **values: object) -> None:
    """Put checked values into a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def as_numbers(name: str, values: Any) -> NDArray[np.float64]:
    """Return numbers as float64, or raise a ValueError where NumPy raises others, or lets an imaginary part go."""
    try:
        table = np.asarray(values)
        if not np.iscomplexobj(table):
            return np.asarray(table, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ValueError(
        f"{name} is {shown(values)}; it must be an array of real numbers, of one of NumPy's types"
    ) from None


def enter(table: dict[str, Any], entry: Any) -> None:
    """Put an entry into a table by its name, and the table into the order of its entries' places.

    Raises:
        ValueError: if another has its name.
    """
    if entry.name in table:
        raise ValueError(f"name is {entry.name!r}, which another has: take a new one")
    table[entry.name] = entry
    for each in sorted(table.values(), key=lambda each: each.place):
        table[each.name] = table.pop(each.name)


class NotFiniteError(ValueError):
    """A number that must be finite is not; with a return, log F of a response is usually −∞."""


LOG_PROB_SLACK = 1e-3  # by which a sum of log-probabilities may be off


def check_log_probs(**tensors: Tensor) -> None:
    """Raise unless all are logarithms of probabilities, one a response."""
    check_shapes(**tensors)
    for name, tensor in tensors.items():
        if not bool((tensor.detach() <= LOG_PROB_SLACK).all()):
            raise ValueError(f"{name} holds {tensor.detach().max().item():.4g}; a log-probability is at most 0")


def check_shapes(**tensors: Tensor) -> None:
    """Raise unless all are one number a response, of as many, and none is NaN."""
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.ndim != 1 or tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be one number a response, (B,), as {first} has, "
                f"{tuple(reference.shape)}"
            )
        if bool(tensor.detach().isnan().any()):
            raise ValueError(f"{name} holds NaN; drop or repair that response")


def check_finite(**tensors: Tensor) -> None:
    """Raise if a number is NaN or infinite."""
    for name, tensor in tensors.items():
        if not bool(tensor.detach().isfinite().all()):
            raise NotFiniteError(f"{name} holds a number that is not finite; drop or repair that response")

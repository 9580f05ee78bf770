"""The training methods by name: what the command line, the sweeps, the figures and the tables ask.

A method is a file of `bonlib.methods`, which registers it. Nothing else has a list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bonlib.checks import enter, one_of
from bonlib.training.learner import TrainingMethod

METHODS: dict[str, Method] = {}  # in the order in which tables list them


@dataclass(frozen=True, repr=False)
class Method:
    """A training method as a table lists it.

    Attributes:
        name: what the command line and stored results call it.
        make: returns its frozen settings, from the number of its setting, and other fields by name.
        setting: what that number is called: "n" (draws), "beta" (KL coefficient), "every" (steps between two moves of
            the anchor) or "rate" (η of the anchor).
        algorithm: "offline" (stored draws), "rloo", "ppo", or "bond" (both, with an anchor).
        label: its name in figures and tables.
        colour: of its points and lines.
        marker: of its points.
        grid: values of the setting that are tried where nothing else is said.
        samples: what a step learns from, in words.
        objective: what is maximised or minimised, with the function that computes it.
        source: paper and equation.
        decides: the fields that the number decides, if they have other names than the setting.
        training: fields of `TrainSettings` in which it differs from others.
        place: among the rows of a table.
    """

    name: str
    make: Callable[..., TrainingMethod]
    setting: str
    algorithm: str
    label: str
    colour: str
    marker: str
    grid: tuple[float, ...]
    samples: str
    objective: str
    source: str
    decides: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    place: float = 100.0

    def __repr__(self) -> str:
        return f"{self.label}, by {self.setting} ({self.source})"

    @property
    def options(self) -> list[str]:
        """Fields of its settings that may be given by name, beside the number."""
        names = [each.name for each in fields(self.make(self.grid[0]))]
        return [name for name in names if name not in (self.setting, *self.decides)]

    def as_stored(self, options: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """Return options, with late fields that they do not name at their old value: stored runs mean what they did.

        Args:
            options: fields that a run is given by name, as pairs.
        """
        return {**self.make(self.grid[0]).late, **dict(options)}


def register(**about: Any) -> None:
    """Enter a method into the table; arguments are those of `Method`.

    Raises:
        ValueError: if another has its name.
    """
    enter(METHODS, Method(**about))


def get_method(name: str) -> Method:
    """Return a method by name.

    Raises:
        ValueError: if there is none of that name.
    """
    return METHODS[one_of("method", name, METHODS)]

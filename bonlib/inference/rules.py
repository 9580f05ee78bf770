"""What a way to spend draws is, and the table of those that there are.

A rule is a frozen dataclass in a file of this room, which registers it. From rewards of `n` draws on the last axis it
says which draw is kept and how many it took; on a world of finitely many outcomes it says how likely each is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import as_numbers, enter, one_of, settle, shown, whole
from bonlib.exact import Array, Outcomes

RULES: dict[str, RuleEntry] = {}  # in the order in which tables list them


class TooManyOutcomesError(ValueError):
    """A law that is found by going through all cases would take too long on so many outcomes."""


class Choice(NamedTuple):
    """What a rule keeps of draws that lie on the last axis, of shape (..., n).

    Attributes:
        kept: (...) place of the draw that is kept, from 0 to n − 1.
        spent: (...) draws that were made, each with a reward: at most n, where the rule may stop before.
    """

    kept: NDArray[np.intp]
    spent: NDArray[np.intp]


class Rule(Protocol):
    """A way to spend draws.

    Attributes:
        needs: what `choose` wants to know of the draws beside their rewards, by the names of its arguments: log_probs
            (..., n), responses (..., n) which are one response, distances (..., n, n), answers (..., n), partial (...,
            n, checkpoints) rewards of unfinished responses.
    """

    needs: ClassVar[tuple[str, ...]]

    @property
    def n(self) -> int:
        """Draws that it takes at most."""
        ...

    @property
    def choose(self) -> Callable[..., Choice]:
        """Takes rewards (..., n), what it needs by name, and a seed; ties go to the first drawn unless it says so."""
        ...


class KnownRule(Rule, Protocol):
    """A rule whose law is known exactly on finitely many outcomes."""

    def law(self, outcomes: Outcomes) -> Array:
        """Return how likely each outcome is kept, shape (K,).

        What `choose` needs of the draws it takes of the outcomes, by the same names: answers (K,), distances (K, K).

        Raises:
            TooManyOutcomesError: if it would take too long.
        """
        ...

    def cost(self, outcomes: Outcomes) -> float:
        """Return how many draws it makes on average."""
        ...


@dataclass(frozen=True)
class OfN:
    """A rule that makes `n` draws, and looks at all of them before it chooses, unless it says otherwise.

    Args:
        n: a whole number, at least 1.
    """

    n: int
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        settle(self, n=whole("n", self.n, 1))

    def cost(self, outcomes: Outcomes) -> float:
        """Return how many draws it makes on average: n."""
        return float(self.n)


@dataclass(frozen=True, repr=False)
class RuleEntry:
    """A rule as a table lists it.

    Attributes:
        name: what the front door and the command line call it.
        make: returns the rule, from its settings by name: the class, or a function. A method that can only choose while
            responses are being written has no `choose`.
        label: its name in figures and tables.
        knob: the setting that is turned at a fixed n; "" if there is none.
        grid: values of the knob that are tried where nothing else is said, in units of `scale`.
        scale: what a knob is measured in: "reward" (the standard deviation of the rewards), or "" for none.
        keeps: what is kept, in words.
        costs: draws, tokens and reward calls, in words.
        source: paper.
        place: among the rows of a table.
    """

    name: str
    make: Callable[..., Rule]
    label: str
    keeps: str
    costs: str
    source: str
    knob: str = ""
    grid: tuple[float, ...] = ()
    scale: str = ""
    place: float = 100.0

    def __repr__(self) -> str:
        return f"{self.label}{f', by {self.knob}' if self.knob else ''} ({self.source})"


def register(**about: Any) -> None:
    """Enter a rule into the table; arguments are those of `RuleEntry`.

    Raises:
        ValueError: if another has its name.
    """
    enter(RULES, RuleEntry(**about))


def make_rule(name: str, **settings: Any) -> Rule:
    """Return a rule by its name and its fields.

    Raises:
        ValueError: if there is none of that name, or a field is missing, unknown or out of range.
    """
    make = RULES[one_of("rule", name, RULES)].make
    fields = signature(make).parameters
    takes = ", ".join(fields) + "".join(f", and of the draws {each}" for each in needs_of(make))
    if unknown := [each for each in settings if each not in fields]:
        raise ValueError(f"{unknown[0]} is no setting of {name}; it takes {takes}")
    required = [each for each, field in fields.items() if field.default is field.empty]
    if missing := [each for each in required if each not in settings]:
        raise ValueError(f"{name} lacks {missing[0]}; it takes {takes}: give {missing[0]}=…")
    return make(**settings)


def made_rule(rule: str | Rule, **given: Any) -> tuple[Rule, dict[str, Any]]:
    """Return a rule, and what it is told of the draws.

    Args:
        rule: by its name, or as it is.
        **given: fields of a rule by its name; and what it needs to know of the draws beside their rewards.

    Raises:
        ValueError: as `make_rule` has it, or if one that is made has settings besides.
    """
    maker = RULES[rule].make if isinstance(rule, str) and rule in RULES else rule
    told = {each: given.pop(each) for each in needs_of(maker) if each in given}
    if isinstance(rule, str):
        return make_rule(rule, **given), told
    if isinstance(rule, type) or not hasattr(rule, "n"):
        raise ValueError(f"rule is {shown(rule)}; it must be one that is made, such as BestOfN(16), or its name")
    if given:
        raise ValueError(f"{next(iter(given))} is given, and {rule} has its settings already: leave it out")
    return rule, told


def needs_of(rule: object) -> tuple[str, ...]:
    """Return what a rule, or what makes one, wants to know of the draws beside their rewards."""
    return getattr(rule, "needs", ())


def choose_in_groups(
    rule: Rule, rewards: ArrayLike, *, seed: int = 0, known: Mapping[str, Any] | None = None
) -> Choice:
    """Return what a rule keeps of m draws a prompt, cut into m // n groups of n.

    Args:
        rule: the rule.
        rewards: of the draws, shape (prompts, m), finite, with m >= n.
        seed: of the choice.
        known: what the rule needs to know beside the rewards, by name, for all draws: shape (prompts, m, …); distances,
            (prompts, m, m).

    Returns:
        The kept draws as places among the m, and the draws spent, shape (prompts, m // n) each.

    Raises:
        ValueError: if there are fewer than n draws, a reward is not finite, what the rule needs is missing, or it can
            only choose while responses are being written.
    """
    if not hasattr(rule, "n"):
        raise ValueError(f"rule is {shown(rule)}; it must be one that is made, such as BestOfN(16)")
    if not hasattr(rule, "choose"):
        raise ValueError(
            f"rule is {type(rule).__name__}, which cannot choose among responses that were drawn before: write them by "
            "bonlib.inference.steered.steer"
        )
    groups = cut_into_groups(rewards, rule.n)
    prompts, count, n = groups.shape
    needed = known_of_draws(rule, known, np.shape(rewards))
    for name, table in needed.items():
        if name == "distances":
            table = np.stack([table[:, n * k : n * k + n, n * k : n * k + n] for k in range(count)], axis=1)
        else:
            table = table[:, : count * n].reshape(prompts, count, n, *table.shape[2:])
        needed[name] = table
    kept, spent = rule.choose(groups, **needed, seed=seed)
    return Choice(kept + n * np.arange(count), spent)


def known_of_draws(rule: Rule, known: Mapping[str, Any] | None, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Return what a rule needs to know of draws, (P, m), by name, after a check that it is there for each of them."""
    needed = {}
    for name in needs_of(rule):
        given = None if known is None else known.get(name)
        if given is None:
            steered = ", or write by bonlib.inference.steered.steer" if hasattr(rule, "go_on") else ""
            raise ValueError(f"{name} is missing; {type(rule).__name__} needs it for each draw: give {name}=…{steered}")
        needed[name] = of_draws(name, given, (*shape, shape[-1]) if name == "distances" else shape)
    return needed


def of_draws(name: str, given: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return what is known of draws as an array, after a check of its shape, to which `partial` adds checkpoints."""
    table = np.asarray(given)
    if table.shape[: len(shape)] != shape:
        raise ValueError(f"{name} has shape {table.shape}; it must be {shape}: give one for each draw of rewards")
    return table


def cut_into_groups(rewards: ArrayLike, n: int) -> Array:
    """Return rewards, (prompts, m), as groups of n, (prompts, m // n, n), after a check of them."""
    table = checked_table(rewards)
    n = whole("n", n, 1, table.shape[1], what=f"with {table.shape[1]} draws a prompt it")
    count = table.shape[1] // n
    return table[:, : count * n].reshape(len(table), count, n)


def checked_table(rewards: ArrayLike) -> Array:
    """Return rewards as float64, (prompts, draws), after a check that they are such, and finite."""
    table = as_numbers("rewards", rewards)
    if table.ndim != 2:
        raise ValueError(f"rewards has shape {table.shape}; it must be (prompts, draws)")
    return checked_rewards(table)


def checked_rewards(rewards: ArrayLike, n: int | None = None) -> Array:
    """Return rewards as float64, (..., n), after a check that all are finite, and that there are n of them."""
    table = as_numbers("rewards", rewards)
    if table.ndim == 0 or table.shape[-1] == 0 or (n is not None and table.shape[-1] != n):
        wanted = "at least one draw" if n is None else f"{n} draws"
        raise ValueError(f"rewards has shape {table.shape}; its last axis must hold {wanted}")
    if not np.isfinite(table).all():
        place = ", ".join(map(str, np.argwhere(~np.isfinite(table))[0]))
        raise ValueError(f"rewards[{place}] is {table[~np.isfinite(table)][0]}; drop or repair that response")
    return table


def checked_like(name: str, values: Any, rewards: Array, *more: int) -> Array:
    """Return numbers as float64 after a check that there is one a draw (or `more` of them a draw), all finite."""
    table = as_numbers(name, values)
    wanted = (*rewards.shape, *more)
    if table.shape != wanted or not np.isfinite(table).all():
        raise ValueError(f"{name} has shape {shown(table.shape)} or a number that is not finite; it must be {wanted}")
    return table


def all_spent(rewards: Array) -> NDArray[np.intp]:
    """Return that all draws were made, for a rule that looks at each: shape (...) for rewards of shape (..., n)."""
    return np.full(rewards.shape[:-1], rewards.shape[-1], dtype=np.intp)

"""Pictures of the report: lines with their errors, and a histogram, as text that stands in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST, CHANCE, BOUND, GOLD = "#0173b2", "#ca9161", "#222222", "#b35900"  # as the course has them
SIZE = (4.4, 3.2)  # inches; a phone shows its 317 points nearly as they are


class Line(NamedTuple):
    """A curve of a picture.

    Attributes:
        label: in the legend.
        x: where.
        y: how much; NaN is left out.
        error: standard error, a band around the curve; None for a formula.
        colour: of the curve.
        style: of the line, as Matplotlib has it.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    error: ArrayLike | None = None
    colour: str = BEST
    style: str = "-"


def lines(given: Sequence[Line], across: str, up: str, *, ranks: bool = False) -> str:
    """Return a picture of curves as the address of an image, which holds the image itself.

    Args:
        given: the curves.
        across: label of the axis below.
        up: of the other.
        ranks: whether both are shares from 0 to 1; otherwise the axis below is logarithmic, in powers of two.
    """
    figure, axis = _panel(across, up)
    for line in given:
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        known = np.isfinite(y)
        x, y = x[known], y[known]
        mark = "o" if len(x) <= 10 and line.error is not None else None
        axis.plot(x, y, line.style, color=line.colour, label=line.label, marker=mark, ms=4)
        if line.error is not None:
            error = np.asarray(line.error, dtype=float)[known]
            axis.fill_between(x, y - error, y + error, color=line.colour, alpha=0.2, lw=0)
    if not ranks:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
    else:
        axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False, fontsize=9)
    return _address(figure)


def histogram(values: ArrayLike, across: str, up: str) -> str:
    """Return a picture of how often values come, as the address of an image, which holds the image itself."""
    figure, axis = _panel(across, up)
    axis.hist(np.asarray(values, dtype=float), bins=40, color=BEST)
    return _address(figure)


def _panel(across: str, up: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set(xlabel=across, ylabel=up)
    return figure, axis


def _address(figure: Figure) -> str:
    import matplotlib

    # Letters stay letters, and names are made from the content, so that the same report is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bonlib"}):
        figure.savefig(drawn := BytesIO(), format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"

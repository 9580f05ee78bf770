"""Sliders over a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def explore(draw: Callable[..., Figure], **controls: Any) -> None:
    """Show a figure under sliders that redraw it.

    The first picture is an ordinary output of the cell, drawn by an ordinary call: run headless, the notebook
    shows it, and an error in `draw` fails the cell.

    Args:
        draw: takes the value of each control by keyword and returns a figure.
        controls: a widget for each argument of `draw`.
    """
    from IPython.display import display
    from ipywidgets import VBox

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    first = draw(**values())
    display(VBox(list(controls.values())))
    picture = display(first, display_id=True)

    def redraw(_: Any) -> None:
        picture.update(draw(**values()))

    for control in controls.values():
        control.observe(redraw, names="value")


def n_slider(value: int = 4, largest: int = 100) -> Any:
    """Return a slider for the number of draws N."""
    from ipywidgets import IntSlider, Layout

    return IntSlider(value, 1, largest, description="N", layout=Layout(width="32rem"))


def beta_slider(value: float = 0.5, smallest: float = 0.02, largest: float = 20.0) -> Any:
    """Return a slider for the KL coefficient β, even in log β."""
    from math import log10

    from ipywidgets import FloatLogSlider, Layout

    return FloatLogSlider(
        value, min=log10(smallest), max=log10(largest), step=0.01, description="β", readout_format=".3g",
        layout=Layout(width="32rem"),
    )  # fmt: skip

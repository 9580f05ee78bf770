"""Best-of-N: exact mathematics, models, draws, and methods that train a model to imitate it.

    import bonlib as bon
    model = bon.load("imdb-gpt2-tiny")
    draws = bon.draw(model, ["The film", "I never"], count=128).score(lambda prompt, response: -len(response))
    draws.curve()
    draws.choose("soft", n=16, temperature=3)
    policy = bon.train("vbon", draws, n=8, steps=40)

Importing this package loads NumPy and SciPy only; the rest comes when it is called.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bonlib.exact import Outcomes, kl_divergence

if TYPE_CHECKING:
    from bonlib.files import as_draws, choose, export, report, score
    from bonlib.front import compare, draw, train
    from bonlib.inference import RULES
    from bonlib.ingredients import judge, load, reward, served, server
    from bonlib.methods import METHODS
    from bonlib.models.explain import explain
    from bonlib.records.reading import read

__all__ = [
    "METHODS",
    "RULES",
    "Outcomes",
    "__version__",
    "as_draws",
    "choose",
    "compare",
    "draw",
    "explain",
    "export",
    "judge",
    "kl_divergence",
    "load",
    "read",
    "report",
    "reward",
    "score",
    "served",
    "server",
    "train",
]
__version__ = "0.1.0"
# Threads of PyTorch that wait for each other keep their core busy for a while. Beside another busy process that makes
# them several times slower, and a short while costs nothing (benchmarks/busy.py). Read when PyTorch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_LATE = dict.fromkeys(__all__, "bonlib.front") | {
    "METHODS": "bonlib.methods",
    "RULES": "bonlib.inference",
    "explain": "bonlib.models.explain",
    "read": "bonlib.records.reading",
    **dict.fromkeys(("judge", "load", "reward", "served", "server"), "bonlib.ingredients"),
    **dict.fromkeys(("as_draws", "choose", "export", "report", "score"), "bonlib.files"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'bonlib' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

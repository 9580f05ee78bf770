"""The best-of-N workbook: exact mathematics, samplers, estimators and losses of best-of-N alignment.

`bonlib.exact` and `bonlib.bounds` need NumPy and SciPy only; `bonlib.lm` adds language models; `bonlib.course`
is what the notebooks and the command line use. Importing this package loads none of the heavy parts.
"""

from bonlib.exact import Outcomes, kl_divergence

__all__ = ["Outcomes", "__version__", "kl_divergence"]
__version__ = "0.1.0"

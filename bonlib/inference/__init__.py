"""Methods that spend draws, one file each: which of given responses is kept, how likely, at what cost."""

from importlib import import_module
from pathlib import Path

from bonlib.inference.rules import RULES, Choice, Rule, RuleEntry, choose_in_groups, made_rule, make_rule

__all__ = ["RULES", "Choice", "Rule", "RuleEntry", "choose_in_groups", "made_rule", "make_rule"]
for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"bonlib.inference.{file.stem}")  # each registers what it has

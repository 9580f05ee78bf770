"""The command line: `python -m bonlib COMMAND`. Each command lives with what it does, and is imported when called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

COMMANDS = {
    "draw": "bonlib.commands:draw_command",
    "score": "bonlib.commands:score_command",
    "report": "bonlib.commands:report_command",
    "choose": "bonlib.commands:choose_command",
    "train": "bonlib.course.experiments.commands:train_command",
    "export": "bonlib.commands:export_command",
    "compare": "bonlib.commands:compare_command",
    "explain": "bonlib.models.explain:explain_command",
    "store": "bonlib.draws.store:store_command",
    "run": "bonlib.course.commands:run_command",
    "check": "bonlib.course.check:check_command",
    "judge": "bonlib.course.experiments.commands:judge_command",
    "pretrain": "bonlib.course.making.command:pretrain_command",
    "methods": "bonlib.course.commands:methods_command",
    "site": "bonlib.course.commands:site_command",
    "stubs": "bonlib.course.commands:stubs_command",
}


class Commands(click.Group):
    """The commands of the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        module, _, name = COMMANDS.get(cmd_name, "").partition(":")
        return getattr(import_module(module), name) if module else None


commands = Commands("bonlib", help="The best-of-N workbook.", no_args_is_help=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (0 well, 1 something failed, 2 wrong usage)."""
    if os.environ.get("BONLIB_STORE"):  # kernels run in another directory, and must find the same place
        os.environ["BONLIB_STORE"] = str(Path(os.environ["BONLIB_STORE"]).expanduser().resolve())
    try:
        code = commands.main(argv, prog_name="bonlib", standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a closed pipe is no trouble
        return code
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else "bonlib"
        print(f"bonlib: {error.format_message()} (`python -m {asked} --help` says what there is)", file=sys.stderr)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"bonlib: {error}", file=sys.stderr)
        return 1 if getattr(error, "on_the_way", False) else 2
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1  # as click has it, where it notices
    except click.Abort:
        print(
            "bonlib: interrupted; what was made is kept: the same command goes on (`run --resume`)",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        print(f"bonlib: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

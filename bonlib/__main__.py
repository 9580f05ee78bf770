"""The command line: `python -m bonlib run | train | judge | pretrain | explain | check | store | site | stubs`."""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bonlib.checks import number, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (0 well, 1 something failed, 2 wrong usage)."""
    if os.environ.get("BONLIB_STORE"):  # kernels run in another directory, and must find the same place
        os.environ["BONLIB_STORE"] = str(Path(os.environ["BONLIB_STORE"]).expanduser().resolve())
    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.command(arguments))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"bonlib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bonlib: interrupted; what was drawn is kept (`run` goes on with --resume)", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from bonlib.course.check import missing_gpu
    from bonlib.course.profiles import get_profile
    from bonlib.course.runner import BUILD, plan, publish, run_notebooks

    profile = get_profile(arguments.profile)
    only = arguments.only.split(",") if arguments.only else ()
    parameters = _assignments("-p", arguments.parameter)
    plan(only, parameters)
    trouble = missing_gpu(profile)
    if trouble and not arguments.without_gpu:
        raise ValueError(trouble)
    build = (arguments.build or BUILD / profile.name).resolve()
    _print_estimate(profile)
    reports = run_notebooks(
        profile,
        only=only,
        resume=arguments.resume,
        parameters=parameters,
        build=build,
    )
    if arguments.publish:
        publish(reports, build, profile)
    failed = [report for report in reports if report.status != "ok"]
    print(f"{len(reports) - len(failed)} of {len(reports)} notebooks ran well; open {build / 'index.html'}")
    for report in failed:
        print(f"FAILED {report.name}, {report.error}")
    return 1 if failed else 0


def _print_estimate(profile: Any) -> None:
    from bonlib.course.check import sampling_cost

    print(f"profile {profile.name}: {sampling_cost(profile)}", flush=True)


def _check(arguments: argparse.Namespace) -> int:
    from bonlib.course.check import findings, fitting_profile, profile_lines, this_machine
    from bonlib.course.profiles import get_profile

    profile, ok = get_profile(arguments.profile), True
    for finding in findings(profile):
        print(finding, flush=True)
        ok &= finding.ok
    if ok:
        _print_estimate(profile)
    machine = this_machine()
    print(machine, *profile_lines(machine), sep="\n")
    print(f"the largest profile that fits is {fitting_profile(machine)}")
    return 0 if ok else 1


def _pretrain(arguments: argparse.Namespace) -> int:
    from bonlib.course.experiments.summarisation import SummaryHarness, bundle
    from bonlib.course.making import adapters, pretrain
    from bonlib.course.profiles import get_profile
    from bonlib.course.runner import BUILD
    from bonlib.models.places import BUNDLED, locate

    names = {"language-model": "imdb-gpt2-tiny", "reward-model": "imdb-sentiment-tiny"}
    names |= {which: f"tldr-{which}" for which in ("sft", "proxy", "gold")}
    if arguments.what == "evaluate":
        for name in [arguments.model] if arguments.model else list(names.values())[:2]:
            figures = pretrain.evaluate(Path(locate(name)))
            print(name + ":", ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items()))
        return 0
    folder = arguments.out or BUNDLED / names.get(arguments.what, "")
    scratch = BUILD / "pretrain" / folder.name
    if arguments.what == "language-model":
        pretrain.pretrain_language_model(folder, scratch)
    elif arguments.what == "sft":
        adapters.make_finetuned(folder, scratch, arguments.data, arguments.revision)
    elif arguments.what == "policies":
        bundle(SummaryHarness(get_profile("laptop")), folder=arguments.out or BUNDLED)
        return 0
    elif arguments.what in ("proxy", "gold"):
        sft = Path(locate(arguments.model or names["sft"]))
        adapters.make_reward_model(arguments.what, folder, scratch, sft, arguments.data, arguments.revision)
    else:
        pretrain.pretrain_reward_model(folder, scratch, Path(locate(arguments.model or names["language-model"])))
    print((folder / "README.md").read_text())
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from bonlib.models.explain import explain
    from bonlib.models.loaded import load_classifier, load_language_model

    load = load_classifier if arguments.classifier else load_language_model
    print(explain(load(arguments.model, revision=arguments.revision)))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from bonlib.course.experiments import exact_runs, grids, sentiment
    from bonlib.course.experiments import summarisation as tldr
    from bonlib.course.profiles import get_profile
    from bonlib.methods import METHODS
    from bonlib.training.trainer import DivergedError

    numbers = {name: getattr(arguments, name) for name in ("n", "beta", "every", "rate", "seed")}
    given = [f"--{name}" for name, number in numbers.items() if number is not None]
    if arguments.sweep and (given or arguments.set or arguments.out):
        wrong = ", ".join(["--set", "--out", *(f"--{name}" for name in numbers)])
        raise ValueError(f"a sweep has its own settings, seeds and folders: leave out {wrong}")
    if arguments.sweep == "exact":
        if arguments.method:
            raise ValueError(f"method is {arguments.method[0]!r}; the sweep exact trains them all: name none")
        exact_runs.run_all([*exact_runs.search(), *exact_runs.grid()])
        exact_runs.run_all(exact_runs.bond_grid(), table=exact_runs.BOND_TABLE)
        return 0
    profile = get_profile(arguments.profile)
    unknown = [method for method in arguments.method if method not in METHODS]
    if unknown:
        raise ValueError(f"method is {unknown[0]!r}; it must be one of {', '.join(METHODS)}")
    assigned = _assignments("--set", arguments.set)
    changes, options = (
        tuple(sorted((name, given) for name, given in assigned.items() if (name in sentiment.SETTABLE) == of_training))
        for of_training in (True, False)
    )
    harness = (tldr.SummaryHarness if arguments.sweep == tldr.SWEEP else sentiment.Harness)(profile)
    if arguments.sweep:
        sweeps = {
            "sentiment": grids.grid,
            "learning_rates": grids.rate_grid,
            "cdf": grids.cdf_grid,
            "budget": grids.budget_grid,
            "bond": grids.bond_grid,
            "tldr": tldr.grid,
        }
        runs = sweeps[arguments.sweep](profile, arguments.method)
        if not runs:
            raise ValueError(f"method is {arguments.method[0]!r}; the sweep {arguments.sweep} has no runs of it")
        return 0 if harness.run_all(runs) else 1
    if len(arguments.method) != 1:
        raise ValueError(f"name one method of {', '.join(METHODS)}, or a --sweep")
    (method,) = arguments.method
    setting = METHODS[method].setting
    value, unused = numbers[setting], [name for name in given if name not in (f"--{setting}", "--seed")]
    if value is None:
        raise ValueError(f"the setting of {method} is {setting}: give --{setting}")
    if unused:
        raise ValueError(
            f"the setting of {method} is {setting}, not {unused[0]}: other fields of it are given by --set"
        )
    run = sentiment.Run(method, value, arguments.seed or 0, changes=changes, options=options)
    # All that can be wrong is found before a model is loaded or anything is drawn.
    _about(f"--{setting}", sentiment.Run(method, value, 0).make)
    _about("--set", run.check_names)
    _about("--set has a value of the wrong kind", lambda: (run.make(), harness.settings(run)))
    harness.check(run)
    try:
        trained = harness.train(run, folder=arguments.out)
    except DivergedError as error:
        print(f"bonlib: {error}", file=sys.stderr)
        return 1
    if trained.main_process:
        for name, figure in harness.row(run, trained, harness.evaluate(trained.policy)).items():
            print(f"{name:15s} {figure:.4g}" if isinstance(figure, float) else f"{name:15s} {figure}")
        print(f"policy in {trained.folder / 'policy'}")
    return 0


def _judge(arguments: argparse.Namespace) -> int:
    from bonlib.course.experiments.summarisation import SummaryHarness
    from bonlib.course.profiles import get_profile

    SummaryHarness(get_profile(arguments.profile)).judge_all()
    return 0


def _store(arguments: argparse.Namespace) -> int:
    from bonlib.draws.store import SampleStore

    if arguments.root and not arguments.root.is_dir():
        raise ValueError(f"--root is {str(arguments.root)!r}, where there is no store: check the spelling")
    store = SampleStore(arguments.root)
    if arguments.prune is not None:
        print(f"freed {store.prune(arguments.prune) / 1e6:.1f} MB")
    for row in store.describe():
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(f"{store.root}: {store.size() / 1e6:.1f} MB")
    return 0


def _site(arguments: argparse.Namespace) -> int:
    from bonlib.course.profiles import get_profile
    from bonlib.course.runner import BUILD
    from bonlib.course.site import build_site

    executed = arguments.build or BUILD / get_profile(arguments.profile).name
    if not any(executed.glob("*.ipynb")):
        raise ValueError(
            f"--build is {str(executed)!r}, without an executed notebook: make some with `python -m bonlib run`, or "
            "name the folder of another run"
        )
    site = build_site(executed, arguments.out or BUILD / "site")
    print(*site.warnings, sep="\n", file=sys.stderr)
    print(f"{len(site.pages)} pages, {site.megabytes:.1f} MB; open {site.folder / 'index.html'}")
    return 1 if site.warnings else 0


def _stubs(arguments: argparse.Namespace) -> int:
    from bonlib.course.exercises import write_stubs

    for path in write_stubs():
        print(f"wrote {path}")
    return 0


def _assignments(option: str, texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{option} is {text!r}; it must have the form name=value")
        if name in found:
            raise ValueError(f"{option} has {name!r} twice: leave one out")
        found[name] = _literal(value)
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _about(beginning: str, check: Callable[[], Any]) -> None:
    """Make a check whose complaint begins with the option that it is about."""
    try:
        check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{beginning}: {error}") from error


def _checked(name: str, check: Callable[..., Any], **limits: float) -> Callable[[str], Any]:
    """Return a reader of an option's number, which says what is wrong with it; argparse would swallow a ValueError."""

    def read(text: str) -> Any:
        try:
            return check(name, _literal(text), **limits)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file: name a folder")
    return path


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other mistake is: in one line, by the exit code that `main` returns."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (`python -m {self.prog} --help` says what there is)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bonlib", description="The best-of-N workbook.")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="execute the notebooks into _build/PROFILE, with an index page")
    run.add_argument("--profile", default="quick", help="quick (default), laptop, gpu or paper")
    run.add_argument("--only", default="", help="numbers or names of notebooks, separated by commas")
    run.add_argument("--resume", action="store_true", help="skip notebooks that already ran well, unchanged since")
    run.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="for the notebooks")
    run.add_argument("--build", type=_folder, help="folder for the results, instead of _build/PROFILE")
    run.add_argument("--publish", action="store_true", help="copy the figures to figures/, for README")
    run.add_argument("--without-gpu", action="store_true", help="run a profile that wants a GPU without one")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="say what is missing, and which profile this machine can run")
    check.add_argument("--profile", default="quick")
    check.set_defaults(command=_check)

    train = commands.add_parser("train", help="train a policy by one method, or a whole sweep; resumes")
    train.add_argument(
        "method", nargs="*", help="one of bonlib.methods.registry.METHODS; for a sweep several, or none for all"
    )
    train.add_argument("--profile", default="quick")
    for name, about in (
        ("n", "number of draws N to imitate"),
        ("beta", "KL coefficient, or DPO's β"),
        ("every", "steps between two moves of the anchor (bond-iterative)"),
        ("rate", "share of the weights that the anchor takes up at each step (jbond)"),
    ):
        train.add_argument(f"--{name}", type=_checked(name, number), help=about)
    train.add_argument("--seed", type=_checked("seed", whole, most=2**32 - 1), help="of training, 0 if not given")
    fields = "a field of TrainSettings, or of the method"
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=fields)
    train.add_argument("--out", type=_folder, help="folder of the run, instead of one under _build/train")
    sweeps = ["learning_rates", "sentiment", "cdf", "budget", "bond", "tldr", "exact"]
    train.add_argument("--sweep", choices=sweeps, help="many runs, into data/results")
    train.set_defaults(command=_train)

    judge = commands.add_parser("judge", help="judge the policies of the notebook on summarisation; resumes")
    judge.add_argument("--profile", default="laptop")
    judge.set_defaults(command=_judge)

    pretrain = commands.add_parser("pretrain", help="train or evaluate the bundled models; resumes")
    pretrain.add_argument(
        "what", choices=["language-model", "reward-model", "sft", "proxy", "gold", "policies", "evaluate"]
    )
    pretrain.add_argument(
        "model",
        nargs="?",
        help="evaluate: the model; reward-model: the language model to start from; proxy, gold: the fine-tuned adapter",
    )
    pretrain.add_argument(
        "--data", default="allenai/scitldr", help="of sft, proxy and gold: SciTLDR's folder, or the hub"
    )
    pretrain.add_argument("--revision", help="commit of that data set on the hub")
    pretrain.add_argument("--out", type=_folder, help="folder for the model, instead of data/models")
    pretrain.set_defaults(command=_pretrain)

    explain = commands.add_parser("explain", help="say which fast ways of reading a model proved right, and are taken")
    explain.add_argument("model", help="bundled name, folder, GGUF file or hub name")
    explain.add_argument("--classifier", action="store_true", help="it is a reward model, not a language model")
    explain.add_argument("--revision", help="commit, tag or branch of the hub")
    explain.set_defaults(command=_explain)

    store = commands.add_parser("store", help="show what the store of draws holds, or prune it")
    store.add_argument("--root", type=_folder, help="folder, instead of BONLIB_STORE or the user's cache folder")
    days = _checked("prune", number, least=0)
    store.add_argument("--prune", type=days, metavar="DAYS", help="delete draws not asked for in so many days (0: all)")
    store.set_defaults(command=_store)

    site = commands.add_parser("site", help="build the pages that need no server, from the notebooks of the last run")
    site.add_argument("--profile", default="quick", help="whose run")
    site.add_argument("--build", type=_folder, help="folder of executed notebooks, instead of _build/PROFILE")
    site.add_argument("--out", type=_folder, help="folder for the pages, instead of _build/site")
    site.set_defaults(command=_site)

    stubs = commands.add_parser("stubs", help="cut the exercises of notebooks/ out of notebooks/solutions/")
    stubs.set_defaults(command=_stubs)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The commands for files, models and servers of anybody's: draw, score, report, choose, export and compare.

What they print for people to read goes to standard error where the result itself goes to standard output, so that they
can stand in a pipe. Draws and rewards are kept in the store: a command that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import click

from bonlib.checks import number, one_line, shown, whole
from bonlib.options import assignments, checked, examples, folder, named_option, options_of

_COLUMNS = ("prompt", "response", "reward", "gold", "log_prob", "length", "answer", "correct")
_FILE = (*_COLUMNS, "format", "split")
_LAW = ("temperature", "top_p", "top_k", "min_p", "stop")
_SERVER = ("key", "concurrency", "max_calls", "max_tokens")
_NO_SERVER: dict[str, Any] = {**dict.fromkeys(("served_model", *_SERVER)), "kind": "json"}

_json = click.option("--json", "as_json", is_flag=True, help="print a JSON object, for programs")
_out = click.option("--out", default="-", metavar="FILE", help="JSONL, JSON, CSV or Parquet by its ending; - is stdout")
_n = click.option("--n", callback=checked(whole, least=1), metavar="NUMBER", help="of best-of-n; of dpo, draws to pair")
_seed = click.option("--seed", default="0", callback=checked(whole), metavar="NUMBER", help="another, other draws")
_store = click.option("--store", callback=folder, metavar="DIR", help="of draws and rewards, instead of BONLIB_STORE")
_by = click.option(
    "--by", required=True, metavar="WHAT", help="the reward: a classifier, an address, or FILE.py:FUNCTION"
)
_judge = click.option(
    "--judge", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="TEMPLATE",
    help="file with {prompt} and {response}: --by is a model then, and answers it with a number",
)  # fmt: skip
_file = options_of(
    *(named_option(name, metavar="COLUMN", help=f"column of the {name.replace('_', '-')}") for name in _COLUMNS),
    click.option("--format", metavar="NAME", help="of the file, if it is not recognised"),
    click.option("--split", metavar="NAME", help="of a data set that has several"),
)
_count = click.option(
    "--count", default="64", callback=checked(whole, least=1), metavar="NUMBER", help="draws a prompt"
)
_law = options_of(
    click.option(
        "--max-new-tokens", default="64", callback=checked(whole, least=1), metavar="NUMBER", help="longest response"
    ),
    *(named_option(name, metavar="NUMBER", callback=checked(number)) for name in _LAW[:-1]),
    click.option("--stop", multiple=True, metavar="TEXT", help="ends a response; may be given several times"),
)
_server = options_of(
    click.option("--served-model", metavar="NAME", help="name of a served model, where there are several"),
    click.option("--key", default="OPENAI_API_KEY", metavar="NAME", help="environment variable that holds its key"),
    *(
        named_option(name, metavar="NUMBER", callback=checked(whole, least=1), help=about)
        for name, about in zip(
            _SERVER[1:],
            ("requests at once", "requests that may be made, no more", "tokens that may be spent, no more"),
            strict=True,
        )
    ),
)


def _model(name: str, options: Mapping[str, Any], **served: Any) -> Any:
    """What draws: a served model if its name is an address, asked in a way of its own, else one that is loaded."""
    import bonlib as bon

    if _is_address(name):
        return bon.served(bon.server(name, **_some(options, _SERVER)), options["served_model"], **served)
    return bon.load(name)


def _reward(by: str, options: Mapping[str, Any] = _NO_SERVER, judge: Path | None = None) -> Any:
    """A reward by what the command line calls it."""
    import bonlib as bon

    if judge is not None:
        return bon.judge(_model(by, options, chat=True), judge.read_text())
    if _is_address(by):
        where, name = bon.server(by, **_some(options, _SERVER)), options["served_model"] or ""
        return bon.reward(where, name=name, kind=options["kind"])
    if by.endswith(".py"):
        raise ValueError(f"--by is {by!r}, a file without its function: give {by}:FUNCTION")
    file, colon, function = by.rpartition(":")
    return bon.reward(_function(Path(file), function) if colon and file.endswith(".py") else by)


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _some(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options of some names that were given."""
    return {name: options[name] for name in names if options[name] not in (None, ())}


def _function(file: Path, name: str) -> Callable[[str, str], Any]:
    """A function of a file of Python."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: give FILE.py:FUNCTION")
    spec = util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file raises
        raise ValueError(f"{file} cannot be run ({one_line(error)}): mend it") from error
    if not callable(function := getattr(module, name, None)):
        raise ValueError(f"{file} has no function {name!r}: give FILE.py:FUNCTION")

    def careful(prompt: str, response: str) -> Any:
        try:
            return function(prompt, response)
        except Exception as error:  # likewise
            where = f"prompt {shown(prompt)}, response {shown(response)}"
            raise ValueError(f"{name} raised {one_line(error)} at {where}: mend it") from error

    careful.__name__ = name
    return careful


def _say(as_json: bool, about: dict[str, Any], *lines: object, error: bool = False) -> None:
    """Print what a command did: as JSON, or in lines, beside the result if that goes to standard output."""
    if as_json:
        print(json.dumps(about))
    else:
        print(*lines, sep="\n", file=sys.stderr if error else sys.stdout)


def _check_out(out: str, source: str, as_json: bool) -> None:
    if as_json and out == "-":
        raise ValueError("--json is given and --out is '-': both would go to standard output; name a file as --out")
    if out != "-" and Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
        raise ValueError(f"--out is {out!r}, the file that is read: name another, as it would be lost")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings on standard error as what they say, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *place: print(message, file=sys.stderr)
        yield


def _say_apart(records: Any) -> None:
    """Say on standard error which rows are left out of what is written."""
    if len(records.bad):
        first = records.bad.iloc[0]
        print(f"{len(records.bad)} rows are left out, the first: {first.place} {first.reason}", file=sys.stderr)


@click.command(
    "draw",
    epilog=examples(
        "bonlib draw imdb-gpt2-tiny prompts.txt --count 64 --out draws.jsonl",
        "bonlib draw http://localhost:8000/v1 prompts.jsonl --temperature 0.8 --log-probs model > draws.jsonl",
    ),
)
@click.argument("model")
@click.argument("prompts", metavar="FILE")
@_count
@_law
@_seed
@click.option("--prompt", metavar="COLUMN", help="column of the prompt")
@click.option(
    "--chat", is_flag=True, default=None, help="of a served model: a prompt is a user's turn, in its chat template"
)
@click.option("--kind", metavar="KIND", help="of a server that does not say: vllm, llamacpp, transformers or openai")
@click.option("--log-probs", metavar="OF", help="of what a served model's log-probabilities are: model or law")
@_out
@_json
@_server
@_store
def draw_command(
    model: str,
    prompts: str,
    count: int,
    seed: int,
    prompt: str | None,
    out: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw responses to the prompts of a FILE; what is in the store is not drawn again.

    MODEL is a name, a folder, a GGUF file, or the address of a server of OpenAI's API. FILE has a column of prompts,
    or, if it ends in .txt, a prompt a line; - is standard input.
    """
    import bonlib as bon
    from bonlib.records.reading import read_prompts
    from bonlib.records.writing import table_writer

    _check_out(out, prompts, as_json)
    served, law = _some(options, ("chat", "kind", "log_probs")), _some(options, _LAW)
    if served and not _is_address(model):
        name = next(iter(served)).replace("_", "-")
        raise ValueError(f"--{name} is for a served model, and {model!r} is not the address of one: leave it out")
    write, texts = table_writer(out), read_prompts(prompts, prompt)
    drawn = bon.draw(
        _model(model, options, **served), texts, count, max_new_tokens=options["max_new_tokens"], seed=seed,
        store=options["store"], **law,
    )  # fmt: skip
    write(drawn.table())
    about = {"prompts": len(texts), "draws": drawn.texts.size, "model": drawn.sampler.name, "out": out}
    _say(as_json, about, drawn, error=out == "-")


@click.command(
    "score",
    epilog=examples(
        "bonlib score draws.jsonl --by imdb-sentiment-tiny --out scored.jsonl",
        "bonlib score draws.jsonl --by rewards.py:brevity > scored.jsonl",
        "bonlib score draws.jsonl --by http://localhost:8000/v1 --judge question.txt --max-calls 500 > judged.jsonl",
    ),
)
@click.argument("source", metavar="FILE")
@_by
@_judge
@click.option("--kind", default="json", metavar="KIND", help="of a served reward: json, classify or score")
@click.option("--name", default="reward", help="of the new column; the first score of a file is the reward")
@_file
@_out
@_json
@_server
@_store
def score_command(
    source: str, by: str, judge: Path | None, name: str, out: str, as_json: bool, store: Path | None, **options: Any
) -> None:
    """Give each response of a FILE a score; what is in the store is not scored again.

    Written are prompt, response and what is known of them; other columns are left out.
    """
    import bonlib as bon
    from bonlib.records.writing import table_writer

    _check_out(out, source, as_json)
    write, records = table_writer(out), bon.read(source, **_some(options, _FILE))
    _say_apart(records)
    scored = bon.score(records, _reward(by, options, judge), name=name, store=store)
    write(scored.table())
    rewards = scored.scores[name]
    about = {"responses": len(scored), "kept_apart": len(scored.bad), "mean": float(rewards.mean()), "out": out}
    _say(as_json, about, scored, f"{name}: {rewards.mean():.4g} on average", error=out == "-")


@click.command(
    "report",
    epilog=examples(
        "bonlib report scored.jsonl",
        "bonlib report samples_gsm8k.jsonl --out gsm8k --json",
        "bonlib report table.csv --prompt question --response model_output --reward rm --gold human",
    ),
)
@click.argument("source", metavar="FILE")
@click.option("--out", callback=folder, metavar="DIR", help="for the page and the tables; FILE-report if not given")
@click.option("--most", callback=checked(whole, least=1), metavar="NUMBER", help="largest N of the curve")
@_file
@_json
def report_command(source: str, out: Path | None, most: int | None, as_json: bool, **options: Any) -> None:
    """Say what best-of-N makes of the responses and scores of a FILE, and what is wrong with them, on one page.

    FILE is JSONL, JSON, CSV, Parquet, a folder, a data set, or - for standard input. Columns are found by their usual
    names; a minus before a score's, as in --reward=-toxicity, says that lower is better.
    """
    import bonlib as bon

    found = bon.report(bon.read(source, **_some(options, _FILE)), most=most)
    page = found.save(out or Path(f"{'stdin' if source == '-' else Path(source).name.split('.')[0]}-report"))
    _say(as_json, {**found.to_json(), "page": str(page)}, found, f"open {page}")


@click.command(
    "choose",
    epilog=examples(
        "bonlib choose scored.jsonl --rule best --set n=16 --out kept.jsonl",
        "bonlib choose scored.jsonl --rule soft --set n=16 --set temperature=0.5 --seed 1 > kept.jsonl",
        "bonlib choose samples_gsm8k.jsonl --rule majority --set n=8 --out voted.csv",
    ),
)
@click.argument("source", metavar="FILE")
@click.option("--rule", required=True, metavar="NAME", help="which draw is kept; another name than one lists them")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="of the rule: n, and what it needs")
@_seed
@_file
@_out
@_json
def choose_command(
    source: str, rule: str, settings: Sequence[str], seed: int, out: str, as_json: bool, **options: Any
) -> None:
    """Write the responses of a FILE that a way to spend draws keeps: one of each n draws to a prompt.

    Draws are taken in the order of the file; those of a prompt that make no n are left out. Written are prompt,
    response and what is known of them, and how many draws were made, as spent.
    """
    import bonlib as bon
    from bonlib.records.writing import table_writer

    _check_out(out, source, as_json)
    write, chosen = table_writer(out), assignments("--set", settings)
    records = bon.read(source, **_some(options, _FILE))
    _say_apart(records)
    with _plain_warnings():
        kept = bon.choose(records, rule, seed=seed, **chosen)
    write(kept)
    about = {"kept": len(kept), "responses": len(records), "spent": int(kept["spent"].sum()), "out": out}
    means = {name: float(kept[name].mean()) for name in records.scores}
    lines = [f"{name}: {mean:.4g} on average, of all {records.scores[name].mean():.4g}" for name, mean in means.items()]
    spent = f"spent: {kept['spent'].mean():.4g} draws on average, {chosen['n']} at most"
    _say(as_json, about | {"mean": means}, f"{len(kept)} of {records}", *lines, spent, error=out == "-")


@click.command(
    "export",
    epilog=examples(
        "bonlib export sft scored.jsonl --n 16 --out sft.jsonl",
        "bonlib export dpo scored.jsonl --pairs 4 --out pairs.parquet",
    ),
)
@click.argument("kind")
@click.argument("source", metavar="FILE")
@_n
@click.option("--weights", is_flag=True, default=None, help="sft: all draws, with their chance to be the best of n")
@click.option(
    "--resample", callback=checked(whole, least=1), metavar="NUMBER", help="sft: rows a prompt by that chance"
)
@click.option("--pairs", callback=checked(whole, least=1), metavar="NUMBER", help="dpo: pairs a prompt")
@click.option("--seed", callback=checked(whole), metavar="NUMBER", help="of random choices")
@_file
@_out
@_json
def export_command(kind: str, source: str, out: str, as_json: bool, **options: Any) -> None:
    """Write the responses of a FILE as a trainer takes them.

    KIND is sft (the best of each n), dpo (pairs), bonbon (best and worst, with their target), log-cdf (log F as a
    reward), scored, or scored-lists.
    """
    import bonlib as bon

    _check_out(out, source, as_json)
    records = bon.read(source, **_some(options, _FILE))
    _say_apart(records)
    with _plain_warnings():
        rows = bon.export(records, kind, out, **_some(options, ("n", "weights", "resample", "pairs", "seed")))
    _say(as_json, {"rows": rows, "kind": kind, "out": out}, f"{rows} rows of kind {kind}", error=out == "-")


@click.command(
    "compare",
    epilog=examples(
        "bonlib compare imdb-gpt2-tiny my-policy/policy --prompts prompts.txt --by imdb-sentiment-tiny",
    ),
)
@click.argument("reference")
@click.argument("policies", nargs=-1, required=True, metavar="POLICY...")
@click.option("--prompts", required=True, metavar="FILE", help="with the prompts to compare on")
@click.option("--prompt", metavar="COLUMN", help="column of the prompt")
@_by
@_count
@click.option(
    "--max-new-tokens", default="64", callback=checked(whole, least=1), metavar="NUMBER", help="longest response"
)
@_seed
@_json
@_store
def compare_command(
    reference: str, policies: Sequence[str], prompts: str, prompt: str | None, by: str, count: int, max_new_tokens: int,
    seed: int, as_json: bool, store: Path | None,
) -> None:  # fmt: skip
    """Measure policies beside their reference and its best-of-n: reward, win rate, and KL."""
    import bonlib as bon
    from bonlib.records.reading import read_prompts

    texts = read_prompts(prompts, prompt)
    drawn = bon.draw(bon.load(reference), texts, count, max_new_tokens=max_new_tokens, seed=seed, store=store)
    found = bon.compare(
        {name: name for name in policies},
        drawn.score(_reward(by)),
        seed=seed + 1,
    )
    _say(as_json, {str(name): row.dropna().to_dict() for name, row in found.table.iterrows()}, found)


def train_on(
    model: str, data: str, by: str | None, method: str, *, count: int | None, max_new_tokens: int,
    settings: dict[str, Any], out: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Train a policy of one's own, as `bonlib train --model` does, and return the exit code.

    Args:
        model: name, folder or GGUF file of the reference.
        data: file with prompts, responses and scores; or with prompts alone, if `count` is given.
        by: the reward; None if the method needs no more than the file's scores.
        method: its name.
        count: draws a prompt that are made of the model; if None, the file's responses are taken.
        max_new_tokens: of these draws.
        settings: fields of the method and of the training.
        out: folder of the run; one of its own in the store if None.
        as_json: whether to print a JSON object.
    """
    import bonlib as bon
    from bonlib.records.reading import read_prompts
    from bonlib.training.trainer import DivergedError

    reward = None if by is None else _reward(by)
    if count is None:
        records = bon.read(data)
        draws = bon.as_draws(records, bon.load(model), by=reward, count=int(records.counts.min()))
    elif reward is None:
        raise ValueError("--count is given without --by: fresh draws have no scores; name the reward")
    else:
        drawn = bon.draw(bon.load(model), read_prompts(data), count, max_new_tokens=max_new_tokens)
        draws = drawn.score(reward)
    try:
        trained = bon.train(method, draws, folder=out, **settings)
    except DivergedError as error:
        print(f"bonlib: {error}", file=sys.stderr)
        return 1
    place = trained.folder / "policy"
    _say(as_json, {"method": method, "policy": str(place)}, f"policy in {place}")
    return 0

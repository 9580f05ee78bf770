"""The command that makes the bundled models again."""

from __future__ import annotations

from pathlib import Path

import click

from bonlib.options import folder

FILMS = ("imdb-smollm2", "imdb-gold")
WHAT = ("language-model", "reward-model", *FILMS, "sft", "proxy", "gold", "policies", "evaluate")


@click.command("pretrain")
@click.argument("what", metavar="WHAT", type=click.Choice(WHAT))
@click.argument("model", required=False)
@click.option("--data", help="of sft, proxy and gold: SciTLDR's folder, not the hub's; of evaluate: stanfordnlp/imdb")
@click.option("--revision", help="commit of that data set on the hub")
@click.option("--out", callback=folder, help="folder for the model, instead of data/models")
def pretrain_command(what: str, model: str | None, data: str | None, revision: str | None, out: Path | None) -> None:
    """Train or evaluate the bundled models; resumes.

    WHAT is language-model, reward-model, imdb-smollm2, imdb-gold, sft, proxy, gold, policies or evaluate. MODEL is for
    evaluate the model, for reward-model the language model to start from, for proxy and gold the tuned adapter, and for
    policies a method.
    """
    from bonlib.course.experiments.summarisation import SummaryHarness, bundle
    from bonlib.course.making import adapters, film_adapters, pretrain, reviews
    from bonlib.course.profiles import get_profile
    from bonlib.course.runner import BUILD
    from bonlib.models.places import BUNDLED, locate

    names = {"language-model": "imdb-gpt2-tiny", "reward-model": "imdb-sentiment-tiny"}
    names |= {which: f"tldr-{which}" for which in ("sft", "proxy", "gold")} | {which: which for which in FILMS}
    if what == "evaluate":
        for name in [model] if model else ["imdb-gpt2-tiny", "imdb-sentiment-tiny"]:
            figures = pretrain.evaluate(Path(locate(name)), data or reviews.PACKAGE, revision)
            print(name + ":", ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items()))
        return
    if what == "policies":
        bundle(SummaryHarness(get_profile("laptop")), [model] if model else [], folder=out or BUNDLED)
        return
    place = out or BUNDLED / names[what]
    data = data or "allenai/scitldr"
    scratch = BUILD / "pretrain" / place.name
    if what == "language-model":
        pretrain.pretrain_language_model(place, scratch)
    elif what == "reward-model":
        pretrain.pretrain_reward_model(place, scratch, Path(locate(model or names["language-model"])))
    elif what in FILMS:
        (film_adapters.make_reference if what == "imdb-smollm2" else film_adapters.make_judge)(place, scratch)
    elif what == "sft":
        adapters.make_finetuned(place, scratch, data, revision)
    else:
        adapters.make_reward_model(what, place, scratch, Path(locate(model or names["sft"])), data, revision)
    print((place / "README.md").read_text())

"""What the front door works with, from a name, an address or a function: models, rewards, judges, servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bonlib.checks import shown

if TYPE_CHECKING:
    import torch

    from bonlib.draws.http import Server
    from bonlib.draws.rewards import RewardModel
    from bonlib.draws.samplers import Sampler
    from bonlib.draws.served import ServedSampler
    from bonlib.draws.served_rewards import Judge
    from bonlib.models.loaded import LoadedModel

Folder = str | os.PathLike[str]


def load(
    name: Folder, *, revision: str | None = None, device: str = "auto", dtype: str | torch.dtype = "auto"
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: bundled model ("imdb-gpt2-tiny"), "owner/name" on the hub, folder, or GGUF file.
        revision: hub branch, tag or commit.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "float32" or "bfloat16".

    Raises:
        FileNotFoundError: if the model is not there, or the hub cannot be reached.
        ValueError: if it is no causal language model of text, or its files are not whole.
    """
    from bonlib.models.loaded import load_language_model

    return load_language_model(name, revision=revision, device=device, dtype=dtype)


def server(url: str, *, max_calls: int | None = None, max_tokens: int | None = None, **options: Any) -> Server:
    """Return a server that `served`, `reward` and `judge` can use, with a key and a limit to what it may cost.

    Args:
        url: its base address, such as http://localhost:8000/v1.
        max_calls: requests that may be made, no more; None for no limit.
        max_tokens: tokens of prompts and responses that may be spent, no more; likewise.
        **options: key, the name of the environment variable that holds the key; concurrency, timeout and retries, as of
            `bonlib.draws.http.Server`.

    Raises:
        ValueError: if an argument is out of range.
    """
    from bonlib.draws.budget import Budget
    from bonlib.draws.http import Server

    return Server(url, budget=Budget(max_calls, max_tokens), **options)


def served(where: Server | str, model: str | None = None, **options: Any) -> ServedSampler:
    """Return a model that another program serves by OpenAI's API, to `draw` from.

    Args:
        where: its base address, or a `server`.
        model: by which name the server knows it; the only one that it lists if None.
        **options: chat, system, log_probs and others of `bonlib.draws.served.ServedSampler`.
    """
    from bonlib.draws.served import ServedSampler

    return ServedSampler(where, model, **options)


def judge(by: Sampler | LoadedModel | Server | str, template: str, **options: Any) -> Judge:
    """Return a reward model that asks a language model for a number.

    Args:
        by: a sampler, such as `served` returns with chat=True; a server or its address, whose only model is asked so;
            or a language model, loaded.
        template: what it is asked, with {prompt} and {response}.
        **options: the range of the number and others of `bonlib.draws.served_rewards.Judge`.
    """
    from bonlib.draws.http import Server
    from bonlib.draws.samplers import TransformersSampler
    from bonlib.draws.served_rewards import Judge
    from bonlib.models.loaded import LoadedModel

    if isinstance(by, Server | str):
        by = served(by, chat=True)
    return Judge(TransformersSampler(by) if isinstance(by, LoadedModel) else by, template, **options)


def reward(
    what: Callable[[str, str], Any] | Folder | LoadedModel | RewardModel | Server,
    *,
    name: str = "",
    chat: bool = False,
    **served_as: Any,
) -> RewardModel:
    """Return a reward model: higher is better, on any scale.

    Args:
        what: a function of a prompt and a response that returns a number; a classifier, loaded or by its name, of which
            one with two classes is taken for a judge of sentiment; a `server` of rewards, or its address; or any object
            with ``score(prompts, responses)`` and a ``fingerprint``, which is returned as it is.
        name: of a function, by which the store knows its rewards. If empty, its own name and a hash of its code and of
            what it encloses; when a function of the module that it calls changes, give a name. Or of a served model.
        chat: whether a classifier judges conversations, in its own chat template.
        **served_as: kind and others of `bonlib.draws.served_rewards.ServedReward`.

    Raises:
        ValueError: if it is none of these.
        FileNotFoundError: if there is no such classifier.
    """
    from bonlib.draws.http import Server
    from bonlib.draws.rewards import ClassifierReward, FunctionReward, SentimentReward, check_reward_model
    from bonlib.draws.served_rewards import ServedReward
    from bonlib.models.loaded import LoadedModel, load_classifier

    if isinstance(what, Server) or (isinstance(what, str) and what.startswith(("http://", "https://"))):
        return ServedReward(what, name or None, **served_as)
    if served_as:
        raise ValueError(f"{next(iter(served_as))} is for a server of rewards, and what is {shown(what)}: leave it out")
    if name and not callable(what):
        raise ValueError(
            f"name is {name!r}; only a function needs one, and {type(what).__name__} is none: leave it out"
        )
    if hasattr(what, "score"):
        check_reward_model(what)
        return what  # type: ignore[return-value]  # it was just checked
    if isinstance(what, str | os.PathLike):
        # In bfloat16 a judge would round different rewards to equal ones.
        what = load_classifier(what, dtype="float32")
    if isinstance(what, LoadedModel):
        one_of_two = what.model.config.num_labels == 2 and not chat
        return SentimentReward(what) if one_of_two else ClassifierReward(what, chat=chat)
    return FunctionReward(what, name=name)

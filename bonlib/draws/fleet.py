"""Drawing and scoring by several processes or machines at once, the actors of a Ray cluster, into one store.

The store does the work that matters: each draw has a seed of its own, so it does not matter who draws it and with
what, and whatever is there is not drawn again. Here the prompts are only shared out.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bonlib.draws.rewards import RewardModel
from bonlib.draws.samplers import Sampler, SamplingSettings
from bonlib.draws.segments import replace_file
from bonlib.draws.store import SampleStore, check_request

MAX_LOSSES = 10  # of actors at the same prompts: more, and it is the work that kills them, not the machines


@dataclass(frozen=True)
class FleetReport:
    """What a job has done."""

    prompts: int  # that have all their draws, and their rewards if a reward model was given
    draws: int  # that these prompts have
    drawn: int  # how many of them were not there before, whoever drew them
    tokens: int  # of the responses that were not there before
    lost: int  # how often an actor was lost and another one took over its prompts
    seconds: dict[str, float]  # at work, of each process that finished prompts, by host and number; without loading


def draw_everywhere(
    store: SampleStore,
    prompts: Sequence[str],
    count: int,
    settings: SamplingSettings,
    *,
    seed: int,
    make_sampler: Callable[[], Sampler] | Sequence[Callable[[], Sampler]],
    make_reward: Callable[[], RewardModel] | None = None,
    actors: int | None = None,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    prompts_at_once: int = 16,
) -> FleetReport:
    """Fill the store with `count` draws for each prompt, and their rewards, by several actors.

    Afterwards `store.draw` and `store.score`, called with the same arguments, find all of it there. Works on a Ray that
    is initialised, else on the cluster that RAY_ADDRESS names, else on one started on this machine for the time of the
    call. A lost actor is started again and resumes its prompts, which costs seconds of its work. What `make_sampler`,
    `make_reward`, sampling or scoring raise is raised here too and ends the job; what was drawn is kept.

    Args:
        store: its root must be one folder for all machines: on more than one, on a file system that they share.
        prompts: different from each other, at least one.
        count: draws a prompt, at least 1.
        settings: length, temperature, top-p.
        seed: a different seed gives independent draws.
        make_sampler: called once in each actor; something to pickle, such as a function of a module or a `partial`.
            Several share out what they draw with, such as ``[partial(ServedSampler, url) for url in urls]``: the first
            actor calls the first of them, and so on. Their samplers must have one fingerprint.
        make_reward: likewise; draws are not scored if None.
        actors: how many processes draw; if None, as many as `make_sampler` has functions, and 2 for a single one.
        cpus_per_actor: what Ray reserves for each, and its number of threads. The draws are those of a process with as
            many: another number rounds differently, and now and then a response takes another turn.
        gpus_per_actor: what Ray reserves for each; with 0 on a machine with GPUs, all actors find the same one.
        prompts_at_once: prompts given to an actor at a time; what it does not finish waits for it if it is lost.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
        ValueError: if an argument is out of range, or samplers have different fingerprints.
        FileNotFoundError: if an actor does not see the folder of the store.
        RuntimeError: if the same prompts have cost more than MAX_LOSSES actors.
    """
    check_request(prompts, count)
    makers = [make_sampler] if callable(make_sampler) or make_sampler is None else list(make_sampler)
    if not makers:
        raise ValueError("make_sampler is an empty list; it must hold a function that makes a sampler")
    actors = actors if actors is not None else len(makers) if len(makers) > 1 else 2
    for name, value, least in (
        ("actors", actors, 1),
        ("prompts_at_once", prompts_at_once, 1),
        ("cpus_per_actor", cpus_per_actor, 0),
        ("gpus_per_actor", gpus_per_actor, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ModuleNotFoundError('draw_everywhere needs Ray: pip install -e ".[ray]"') from error
    root = store.root.absolute()  # actors may have another working directory
    root.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), prompts_at_once)
    shares = [(number, list(prompts[start : start + prompts_at_once])) for number, start in enumerate(starts)]
    done, seconds, kinds = Counter[str](), Counter[str](), set[str]()
    with (
        tempfile.TemporaryDirectory(prefix="fleet-", dir=root) as journal,
        _cluster(ray, actors, cpus_per_actor, gpus_per_actor),
        tqdm(total=len(prompts), desc="drawing", unit="prompt", mininterval=5, leave=False) as progress,
    ):
        # Ray starts a lost actor again and repeats its task without limit; MAX_LOSSES ends it, and says why.
        limits = {"num_cpus": cpus_per_actor, "num_gpus": gpus_per_actor, "max_restarts": -1, "max_task_retries": -1}
        request = {"count": count, "settings": settings, "seed": seed}
        # What cannot be unpickled in an actor is to be an error of its work; Ray would start it again for ever.
        packed = [partial(_make, ray.cloudpickle.dumps(make)) for make in makers]
        reward = make_reward and partial(_make, ray.cloudpickle.dumps(make_reward))
        others = reward, max(1, int(cpus_per_actor)), Path(journal)
        actor_of = ray.remote(**limits)(_Worker)
        crew = [
            actor_of.remote(SampleStore(root), request, packed[place % len(packed)], *others)
            for place in range(min(actors, len(shares)))
        ]
        try:
            for row in ActorPool(crew).map_unordered(lambda actor, share: actor.work.remote(*share), shares):
                if row["error"]:
                    raise pickle.loads(row["error"])
                kinds.add(row["sampler"])
                if len(kinds) > 1:
                    raise ValueError(
                        "make_sampler makes samplers of different fingerprints, whose draws do not go together: let "
                        "each serve the same model"
                    )
                done.update({name: row[name] for name in ("prompts", "draws", "drawn", "tokens", "lost")})
                seconds[row["process"]] += row["seconds"]
                progress.update(row["prompts"])
        finally:
            for actor in crew:
                ray.kill(actor)
    return FleetReport(**done, seconds=dict(seconds))


@contextmanager
def _cluster(ray: Any, actors: int, cpus: float, gpus: float) -> Iterator[None]:
    """Use the Ray that is there, or one for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        if actors * gpus > torch.cuda.device_count():
            raise ValueError(
                f"gpus_per_actor is {gpus} for {actors} actors; this machine has {torch.cuda.device_count()} GPUs: ask "
                "for fewer, or set RAY_ADDRESS to a cluster that has them"
            )
        ray.init(
            address="local",
            num_cpus=max(1, math.ceil(actors * cpus)),  # a machine with fewer is slower, but does not wait for ever
            include_dashboard=False,
            log_to_driver=False,  # the actors' progress bars
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class _Worker:
    """What an actor holds, and does with a share of the prompts."""

    store: SampleStore
    request: dict[str, Any]
    make_sampler: Callable[[], Sampler]
    make_reward: Callable[[], RewardModel] | None
    threads: int
    journal: Path
    models: tuple[Sampler, RewardModel | None] | None = None

    def work(self, number: int, prompts: list[str]) -> dict[str, Any]:
        row = {"prompts": 0, "draws": 0, "drawn": 0, "tokens": 0, "lost": 0, "seconds": 0.0, "error": b""}
        row["process"] = process = f"{socket.gethostname()}/{os.getpid()}"
        try:
            row["lost"] = self.losses(number, prompts)
            row |= self.fill(number, prompts)
        except Exception as error:  # carried as a value: Ray would hand back one of its own, a page long
            row["error"] = _carried(error, process)
        return row

    def fill(self, number: int, prompts: list[str]) -> dict[str, Any]:
        # Models are made here and not in __init__, so that what goes wrong takes the same way, exception or death.
        if self.models is None:
            torch.set_num_threads(self.threads)
            self.models = self.make_sampler(), self.make_reward() if self.make_reward else None
        sampler, reward_model = self.models
        begun = time.perf_counter()
        before = self.journal / f"{number}.npy"
        if not before.exists():  # else an actor was lost, and what it drew counts too
            content = io.BytesIO()
            np.save(content, self.store.held(sampler, prompts, **self.request))
            replace_file(before, content.getvalue())
        draws = self.store.draw(sampler, prompts, **self.request)
        if reward_model is not None:
            self.store.score(reward_model, draws)
        seconds = time.perf_counter() - begun
        drawn = ~np.load(before)
        done = {"prompts": len(prompts), "draws": drawn.size, "drawn": int(drawn.sum()), "sampler": sampler.fingerprint}
        return {**done, "tokens": int(draws.lengths[drawn].sum()), "seconds": seconds}

    def losses(self, number: int, prompts: list[str]) -> int:
        """Return how many actors were lost at these prompts, from a file that outlives them."""
        if not self.journal.is_dir():
            raise FileNotFoundError(
                f"{self.store.root} on {socket.gethostname()} is not the store of the machine that started the job: "
                "give SampleStore a root on a file system that all machines share"
            )
        with (self.journal / str(number)).open("ab") as file:
            file.write(b".")
        lost = (self.journal / str(number)).stat().st_size - 1
        if lost > MAX_LOSSES:
            raise RuntimeError(
                f"{lost} actors were lost at the {len(prompts)} prompts from {prompts[0][:40]!r} on, the last on "
                f"{socket.gethostname()}: out of memory? What was drawn is kept; go on with fewer actors a machine, or "
                "a smaller batch_size"
            )
        return lost


def _make(pickled: bytes) -> Any:
    """What a function makes that has come as bytes."""
    return pickle.loads(pickled)()


def _carried(error: Exception, process: str) -> bytes:
    """An exception as bytes, with the place where it was raised as a note."""
    error.add_note(f"In {process}:\n{''.join(traceback.format_exception(error))}")
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # an exception of the user's that takes other arguments than it has
        content = pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    return content

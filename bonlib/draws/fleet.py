"""Drawing and scoring by several processes or machines at once, over Ray Data, into one store.

The store does the work that matters: a chunk's random numbers follow from its key alone, so it does not matter who
draws it, and whatever is there is not drawn again. Here the prompts are only shared out.
"""

from __future__ import annotations

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
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bonlib.draws.rewards import RewardModel
from bonlib.draws.samplers import Sampler, SamplingSettings
from bonlib.draws.store import SampleStore, check_request

MAX_LOSSES = 10  # of actors at the same prompts: more, and it is the work that kills them, not the machines


@dataclass(frozen=True)
class FleetReport:
    """What a job has done.

    Attributes:
        prompts: that have all their draws, and their rewards if a reward model was given.
        chunks: that hold these draws.
        drawn: how many of the chunks were drawn meanwhile, by lost actors too (and by another job on the same store).
        tokens: of the responses that this job drew.
        lost: how often an actor was lost and another one took over its prompts.
        seconds: at work, of each process that finished some prompts, by host and process number; loading is left out.
    """

    prompts: int
    chunks: int
    drawn: int
    tokens: int
    lost: int
    seconds: dict[str, float]


def draw_everywhere(
    store: SampleStore,
    prompts: Sequence[str],
    count: int,
    settings: SamplingSettings,
    *,
    seed: int,
    make_sampler: Callable[[], Sampler],
    make_reward: Callable[[], RewardModel] | None = None,
    actors: int = 2,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    prompts_at_once: int = 16,
    chunk_size: int = 64,
) -> FleetReport:
    """Fill the store with `count` draws for each prompt, and their rewards, by several actors.

    Afterwards `store.draw` and `store.score`, called with the same arguments, find all of it there. Works on a Ray that
    is initialised, else on the cluster that RAY_ADDRESS names, else on one started on this machine for the time of the
    call. A lost actor is started again and resumes its prompts, which costs the chunk in flight. What `make_sampler`,
    `make_reward`, sampling or scoring raise is raised here too and ends the job; what was drawn is kept.

    Args:
        store: its root must be one folder for all machines: on more than one, on a file system that they share.
        prompts: different from each other, at least one.
        count: draws a prompt, at least 1.
        settings: length, temperature, top-p.
        seed: a different seed gives independent draws.
        make_sampler: called once in each actor; something to pickle, such as a function of a module or a `partial`.
        make_reward: likewise; draws are not scored if None.
        actors: how many processes draw.
        cpus_per_actor: what Ray reserves for each, and its number of threads. The draws are those of a process with as
            many: another number rounds differently, and now and then a response takes another turn.
        gpus_per_actor: what Ray reserves for each; with 0 on a machine with GPUs, all actors find the same one.
        prompts_at_once: prompts given to an actor at a time; what it does not finish waits for it if it is lost.
        chunk_size: draws made and kept together; part of what identifies a draw.

    Raises:
        ModuleNotFoundError: if Ray is not installed.
        ValueError: if an argument is out of range.
        FileNotFoundError: if an actor does not see the folder of the store.
        RuntimeError: if the same prompts have cost more than MAX_LOSSES actors.
    """
    check_request(prompts, count, chunk_size)
    for name, value, least in (
        ("actors", actors, 1),
        ("prompts_at_once", prompts_at_once, 1),
        ("cpus_per_actor", cpus_per_actor, 0),
        ("gpus_per_actor", gpus_per_actor, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    ray = _import_ray()
    root = store.root.absolute()  # actors may have another working directory
    root.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), prompts_at_once)
    shares = [{"number": n, "prompts": list(prompts[s : s + prompts_at_once])} for n, s in enumerate(starts)]
    done: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="fleet-", dir=root) as journal,
        _cluster(ray, actors, cpus_per_actor, gpus_per_actor),
        tqdm(total=len(prompts), desc="drawing", unit="prompt", mininterval=5, leave=False) as progress,
    ):
        Path(journal, "begun").touch()
        worker = {
            "store": SampleStore(root),
            "request": {"count": count, "settings": settings, "seed": seed, "chunk_size": chunk_size},
            "make_sampler": make_sampler,
            "make_reward": make_reward,
            "threads": max(1, int(cpus_per_actor)),
            "journal": Path(journal),
        }
        for row in _rows(ray, shares, worker, actors, cpus_per_actor, gpus_per_actor):
            if row["error"]:
                raise pickle.loads(row["error"])
            done.update({name: row[name] for name in ("prompts", "chunks", "drawn", "tokens", "lost")})
            seconds[row["process"]] += row["seconds"]
            progress.update(row["prompts"])
    return FleetReport(**done, seconds=dict(seconds))


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ModuleNotFoundError('draw_everywhere needs Ray: pip install -e ".[ray]"') from error
    return ray


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


def _rows(
    ray: Any, shares: list[dict[str, Any]], worker: dict[str, Any], actors: int, cpus: float, gpus: float
) -> Iterator[dict[str, Any]]:
    """Yield what the actors return for each share, in the order in which they finish."""
    # One block a share, so that Ray Data neither splits nor joins them.
    dataset = ray.data.from_items(shares, override_num_blocks=len(shares))
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = -1  # a share may well take longer than its half an hour
    # Ray Data starts a lost actor again and retries its task, both without limit, and has no lasting way to say so:
    # map() takes `max_restarts` and `max_task_retries` no more. Hence MAX_LOSSES, and a test that kills an actor.
    results = dataset.map(
        _Worker,
        fn_constructor_kwargs=worker,
        # A second share waiting at an actor could not go to one that is idle.
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    with _fewer_messages(), closing(iter(results.iter_rows())) as rows:
        yield from rows


@contextmanager
def _fewer_messages() -> Iterator[None]:
    """Let Ray Data tell of trouble only."""
    levels = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class _Worker:
    """What an actor holds, and does with a share of the prompts."""

    def __init__(
        self,
        store: SampleStore,
        request: dict[str, Any],
        make_sampler: Callable[[], Sampler],
        make_reward: Callable[[], RewardModel] | None,
        threads: int,
        journal: Path,
    ) -> None:
        self.store, self.request, self.threads, self.journal = store, request, threads, journal
        self.make_sampler, self.make_reward = make_sampler, make_reward
        self.models: tuple[Sampler, RewardModel | None] | None = None
        self.process = f"{socket.gethostname()}/{os.getpid()}"

    def __call__(self, share: dict[str, Any]) -> dict[str, Any]:
        row = {"prompts": 0, "chunks": 0, "drawn": 0, "tokens": 0, "lost": 0, "seconds": 0.0, "error": b""}
        try:
            row |= self.work(int(share["number"]), [str(prompt) for prompt in share["prompts"]])
        except Exception as error:  # carried as a value: Ray would hand back one of its own, a page long
            row["error"] = self.carried(error)
        return {**row, "process": self.process}

    def work(self, number: int, prompts: list[str]) -> dict[str, Any]:
        lost = self.losses(number, prompts)
        # Models are made here and not in __init__, so that what goes wrong takes the same way, exception or death.
        if self.models is None:
            torch.set_num_threads(self.threads)
            self.models = self.make_sampler(), self.make_reward() if self.make_reward else None
        sampler, reward_model = self.models
        begun = time.perf_counter()
        draws = self.store.draw(sampler, prompts, **self.request)
        if reward_model is not None:
            self.store.score(reward_model, draws)
        seconds = time.perf_counter() - begun
        # By the clock of the file system, which all machines share; it counts what lost actors drew as well.
        since = (self.journal / "begun").stat().st_mtime_ns
        drawn = np.array([[path.stat().st_mtime_ns >= since for path in paths] for paths in draws.chunks])
        mine = np.repeat(drawn, self.request["chunk_size"], axis=1)[:, : self.request["count"]]
        return {
            "prompts": len(prompts),
            "chunks": drawn.size,
            "drawn": int(drawn.sum()),
            "tokens": int(draws.lengths[mine].sum()),
            "lost": lost,
            "seconds": seconds,
        }

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
                "a smaller chunk_size"
            )
        return lost

    def carried(self, error: Exception) -> bytes:
        """Return an exception as bytes, with the place where it was raised as a note."""
        error.add_note(f"In {self.process}:\n{''.join(traceback.format_exception(error))}")
        try:
            content = pickle.dumps(error)
            pickle.loads(content)
        except Exception:  # an exception of the user's that takes other arguments than it has
            content = pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
        return content

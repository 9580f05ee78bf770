"""The store when processes are killed at any moment, write at once, or find the disk full."""

import errno
import multiprocessing
import os
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
from bonlib.draws.store import DamagedFileError, SampleStore
from bonlib.models.responses import Responses

KILLS = int(os.environ.get("BONLIB_KILLS", "20"))  # `make test-fire` asks for more
PROMPTS = [f"prompt {i}" for i in range(6)]
COUNT, CHUNK = 64 * max(1, KILLS // 20), 4
SETTINGS = SamplingSettings(8)
LENGTH = FunctionReward(lambda prompt, response: float(len(response)), name="length")
fork = multiprocessing.get_context("fork")  # a child that has all this in memory can be killed within milliseconds


class LetterSampler:
    """Random letters, from the seed alone; slow enough to be killed at work, and it keeps a log of what it drew."""

    fingerprint, name = "letters", "letters"

    def __init__(self, log, pause=0.002):
        self.log, self.pause = Path(log), pause

    def sample(self, prompts, settings, *, seed):
        with self.log.open("a") as log:
            log.write(f"{prompts[0]} {seed}\n")
        time.sleep(self.pause)
        ids = np.random.default_rng(seed).integers(97, 123, size=(len(prompts), 8)).astype(np.int32)
        texts = np.array(["".join(map(chr, row)) for row in ids])
        return Responses(texts, ids, -ids.sum(axis=1) / 100.0, -ids.sum(axis=1) / 100.0)


def fill(root, log, pause=0.002):
    store = SampleStore(root)
    store.score(LENGTH, store.draw(LetterSampler(log, pause), PROMPTS, COUNT, SETTINGS, seed=0, chunk_size=CHUNK))


def child_of(root, log, pause=0.002):
    """A process that fills the store and shares no lock with this one, as one that a user starts."""

    def work():
        tqdm.set_lock(threading.RLock())  # a forked one would keep its parent waiting if killed while it holds it
        fill(root, log, pause)

    child = fork.Process(target=work, daemon=True)
    child.start()
    return child


def content(root):
    """Every array in the store, by the file's place."""
    found = {}
    for path in sorted(Path(root).rglob("*.npz")):
        with np.load(path) as archive:
            found |= {(str(path.relative_to(root)), name): archive[name] for name in archive.files}
    return found


@pytest.fixture
def undisturbed(tmp_path):
    fill(tmp_path / "undisturbed", tmp_path / "undisturbed.log", pause=0)
    return content(tmp_path / "undisturbed")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array)


def test_a_store_killed_again_and_again_equals_an_undisturbed_one(tmp_path, undisturbed):
    root, log, rng = tmp_path / "store", tmp_path / "log", np.random.default_rng(0)
    chunks, kills, kept = len(PROMPTS) * COUNT // CHUNK, 0, set()
    for _ in range(KILLS):
        child = child_of(root, log)
        time.sleep(rng.uniform(0.001, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        now = content(root)  # whatever is there can be read
        assert kept <= now.keys()
        for key in now:
            np.testing.assert_array_equal(now[key], undisturbed[key])
        kept = set(now)
    assert kills >= KILLS // 2, "the children finished before they were killed: give them more to do"
    fill(root, log)
    assert_same(content(root), undisturbed)
    drawn = log.read_text().splitlines()
    assert len(set(drawn)) == chunks
    assert len(drawn) <= chunks + kills  # at most the chunk in flight is drawn again
    print(f"{kills} kills, {len(drawn) - chunks} chunks drawn twice, of {chunks}")


def test_what_killed_processes_leave_is_swept_away(tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    fill(root, log)
    folder = next(root.rglob("*.npz")).parent
    old, young = folder / "old.part", folder / "young.part"
    for leftover in (old, young):
        leftover.write_bytes(b"half a chunk")
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
    assert_same(content(root), undisturbed)
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
    assert_same(content(root), undisturbed)


def test_a_truncated_file_is_named_with_the_remedy(tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    fill(root, log)
    victim = sorted(root.rglob("*.npz"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(DamagedFileError, match=f"{victim.name}.*delete it, and what it held is made again"):
        fill(root, log)
    victim.unlink()
    fill(root, log)

"""Many slow jobs at once, each result kept soon after it came, whatever ends the work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from tqdm import tqdm

TOGETHER = 0.2  # seconds; what comes within them is kept together

J = TypeVar("J")
T = TypeVar("T")


def gather(
    jobs: Iterable[J],
    work: Callable[[J], T],
    keep: Callable[[list[tuple[J, T]]], Iterable[J]],
    *,
    at_once: int,
    halt: threading.Event,
) -> None:
    """Do jobs in threads, and have what comes kept within a fraction of a second.

    After an error, or an interrupt, no job is begun, those under way are waited for and kept, and then it is raised. A
    second interrupt leaves them.

    Args:
        jobs: each to be worked on in a thread.
        work: what is done with one.
        keep: takes jobs with their results, here in the caller's thread, and returns jobs that are still to do.
        at_once: how many.
        halt: is set when no more shall be begun, by which jobs may stop to wait; cleared at the beginning.
    """
    halt.clear()
    pool, running, finished = ThreadPoolExecutor(at_once), dict[Future[T], J](), SimpleQueue[Future[T]]()
    come, ended, stopped = list[tuple[J, T]](), None, False

    def do(job: J) -> T:
        if halt.is_set():
            raise CancelledError
        try:
            return work(job)
        except Exception:
            halt.set()
            raise

    def begin(job: J) -> None:
        future = pool.submit(do, job)
        running[future] = job
        future.add_done_callback(finished.put)

    try:
        for job in jobs:
            begin(job)
        while running or come:
            try:
                until = time.monotonic() + TOGETHER
                while running and (time.monotonic() < until or not come):
                    with suppress(Empty):
                        future = finished.get(timeout=TOGETHER)
                        if future not in running:
                            continue
                        job = running.pop(future)
                        error = CancelledError() if future.cancelled() else future.exception()
                        if error is None:
                            come.append((job, future.result()))
                        elif not isinstance(error, CancelledError):
                            ended = ended or error
                    if ended and not stopped:
                        break
                now, come = come, []
                for job in keep(now) if now else ():
                    if not ended:
                        begin(job)
            except KeyboardInterrupt as interrupt:
                if isinstance(ended, KeyboardInterrupt):
                    raise
                ended = interrupt
                for future in filter(Future.done, running):
                    finished.put(future)  # it may have been taken out as the interrupt came
            if ended and not stopped:
                stopped = True
                halt.set()
                left = sum(not (future.cancel() or future.done()) for future in list(running))
                if isinstance(ended, KeyboardInterrupt):
                    note = f"interrupted: {left} requests are under way; interrupt again to leave their answers"
                    tqdm.write(note, file=sys.stderr)
    finally:
        halt.set()
        pool.shutdown(wait=False, cancel_futures=True)
    if ended:
        raise ended

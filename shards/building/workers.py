"""Parts of a plan built side by side in processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

from tqdm import tqdm

from shards.building.parts import Part, build_part
from shards.building.stored_images import ImageRules
from shards.worker_processes import end_with, killed
from toolkit.data.worker_count import cores
from toolkit.errors import UserError

WORTH_A_PROCESS = 500
"""Samples below which starting one more process costs more than it saves."""

# Set in a worker only, when it starts.
_done: "Synchronized[int]"  # samples done by all of them
_stop: Event  # whether to give up


def choose_workers(asked: int, samples: int, parts: int) -> int:
    """`asked`, or for 0 as many as cores and work allow."""
    return max(1, min(asked or min(cores(), -(-samples // WORTH_A_PROCESS)), parts))


def build_parts(
    parts: Iterable[Part], folder: Path, images: Path, rules: ImageRules, workers: int, bar: tqdm,
    after: Callable[[int], None],
) -> None:  # fmt: skip
    """Build each part; `after` is told its number. Few parts are held at a time: `parts` is read as they are done.

    Raises what `build_part`, `parts` or `after` raise, and UserError if a worker is killed.
    """
    if workers == 1:
        for part in parts:
            build_part(folder, images, rules, part, bar.update)
            after(part.number)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU state of the encoder
    with _held(signal.SIGINT, signal.SIGTERM):  # between a semaphore's birth and its registration it would be left over
        done, stop = context.Value("q", 0), context.Event()
        executor = ProcessPoolExecutor(workers, context, _enter, (done, stop, os.getpid()))
    with executor as pool:
        waiting: dict[Future, int] = {}
        try:
            for part in parts:
                with _held(signal.SIGINT):  # processes started here never see a Ctrl-C
                    waiting[pool.submit(_build, folder, images, rules, part)] = part.number
                _settle(waiting, 2 * workers - 1, done, bar, after)
            _settle(waiting, 0, done, bar, after)
        except BrokenProcessPool:
            raise killed() from None
        finally:
            stop.set()  # and no future is cancelled: if workers are killed too, the executor stumbles over those


@contextmanager
def _held(*signals: signal.Signals) -> Iterator[None]:
    """They come a moment later, and processes started meanwhile never see them.

    Blocking alone keeps them from this thread and from those processes; another thread (the progress bar has one) may
    still receive one, and Python would run its handler here.
    """
    late: list[int] = []
    here = threading.current_thread() is threading.main_thread()  # no other thread may set handlers, or runs them
    before = {number: signal.signal(number, lambda came, _: late.append(came)) for number in signals if here}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        for number in late:
            signal.raise_signal(number)


def _settle(
    waiting: dict[Future, int], most: int, done: "Synchronized[int]", bar: tqdm, after: Callable[[int], None]
) -> None:
    """Wait until at most `most` parts are under way."""
    while len(waiting) > most:
        finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        bar.update(done.value - bar.n)
        for future in finished:
            future.result()
            after(waiting.pop(future))


def _enter(done: "Synchronized[int]", stop: Event, parent: int) -> None:
    global _done, _stop
    _done, _stop = done, stop
    end_with(parent)


def _build(folder: Path, images: Path, rules: ImageRules, part: Part) -> None:
    _stop_if_told()
    build_part(folder, images, rules, part, _tick)


def _tick() -> None:
    with _done.get_lock():
        _done.value += 1
    _stop_if_told()


def _stop_if_told() -> None:
    if _stop.is_set():
        raise UserError("stopped")

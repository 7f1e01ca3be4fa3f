"""The processes of a DataLoader: how they end, and what the run hears when one of them dies.

torch would raise a RuntimeError in the main thread wherever that happens to be, in the middle of a save too. Here a
death is heard of only where a batch is awaited, and told in one line.
"""

import contextlib
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from toolkit.errors import UserError

GRACE = 2.0
"""Seconds for workers to end by themselves."""
AHEAD = 4
"""Batches that each worker has in stock."""


def collated(
    dataset: Dataset, batches: Iterable[list[int]], collate: Callable, workers: int, pin: bool = False
) -> Generator[Any, None, None]:
    """`collate([dataset[i] for i in batch])` for each batch of numbers, made by `workers` processes; 0: by this one.

    Closing it ends them. Raises UserError, in one line, for that of an item and if a worker has died.
    """
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin,
        prefetch_factor=AHEAD if workers else None, worker_init_fn=leave_signals_to_the_trainer,
    )  # fmt: skip
    iterator = iter(loader)
    following: Callable[[Any], Any] = next_from if workers else next
    if workers:
        adopt(iterator)
    try:
        with contextlib.suppress(StopIteration):
            while True:
                yield following(iterator)
    except UserError as error:  # a worker's error carries its whole traceback as its message
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("toolkit.errors.UserError: ")) from None
    finally:
        if workers:
            end(iterator)


def adopt(iterator) -> None:
    """Take the workers of a DataLoader's fresh iterator out of torch's own watch."""
    _unwatch(iterator)
    iterator._worker_pids_set = False  # or torch takes them out a second time when it ends them


def next_from(iterator) -> Any:
    """The next batch. Raises UserError if a worker has died, at once and whatever torch makes of that."""
    try:
        try:
            signal_handling._set_worker_pids(id(iterator), tuple(worker.pid for worker in iterator._workers))
            _refuse_dead(iterator)
            return next(iterator)
        finally:
            _unwatch(iterator)
    except (RuntimeError, OSError, EOFError):  # how the wait ends: by SIGCHLD, a look every 5 s, or a broken pipe
        _unwatch(iterator)  # SIGCHLD may have cut that of `finally` short; below, only our line may be raised
        # A pipe may break before the process counts as dead, and so may that which tells its end.
        ended = multiprocessing.connection.wait([worker.sentinel for worker in iterator._workers], timeout=1.0)
        for worker in iterator._workers:
            if worker.sentinel in ended:
                worker.join()
        _refuse_dead(iterator)
        raise


def end(iterator) -> None:
    """Now and not at the interpreter's exit, which would wait for workers deaf to its signal.

    Those in a read that does not end are killed: a run that was told to stop has seconds to save.
    """
    _unwatch(iterator)  # a signal may have cut `next_from` short; one that is killed below must raise nothing
    late = threading.Timer(GRACE, lambda: [worker.kill() for worker in iterator._workers])
    late.start()
    try:
        iterator._shutdown_workers()
    finally:
        late.cancel()


def leave_signals_to_the_trainer(worker: int) -> None:
    """Launchers signal the whole process group; a worker that dies of it would take the last checkpoint along."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _unwatch(iterator) -> None:
    with contextlib.suppress(ValueError):  # not watched
        signal_handling._remove_worker_pids(id(iterator))


def _refuse_dead(iterator) -> None:
    for worker in iterator._workers:
        if not worker.is_alive():
            code = worker.exitcode
            how = f"was killed (signal {-code})" if code < 0 else f"ended by itself (exit code {code})"
            why = ", most likely by the system for want of memory" if code == -signal.SIGKILL else ""
            raise UserError(
                f"data worker {worker.pid} {how}{why}; lower --workers (or the other use of memory), then run the same "
                "command again to go on from the last checkpoint"
            )

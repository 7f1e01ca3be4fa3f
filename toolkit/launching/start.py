"""Where a run starts: the lock on its folder, what a kill left there, and the checkpoint to go on from."""

import sys
from pathlib import Path
from typing import NamedTuple

from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.launching.processes import Processes
from toolkit.launching.stopping import STOP_FILE
from toolkit.run_folder import checkpoint, heartbeat
from toolkit.run_folder.lock import RunLock


class Start(NamedTuple):
    checkpoint: Path | None
    """To resume from; None starts anew."""
    lock: RunLock | None
    """The main process's, for as long as the run lasts."""


def open_run_folder(config: ResolvedConfig, processes: Processes) -> Start:
    """Create or enter out_dir. All processes call it and get the same checkpoint.

    Raises UserError if the folder is in use or not writable, or if there is nothing to resume from where the option
    asks for it.
    """
    folder, locks, step = Path(config.out_dir), [], -1
    chosen = None if config.resume_from in (None, "latest") else Path(config.resume_from)

    def enter() -> None:
        nonlocal step
        locks.append(RunLock(folder))
        checkpoint.tidy(folder)
        (folder / STOP_FILE).unlink(missing_ok=True)
        heartbeat.remove(folder)
        if chosen is None:
            step = _newest_step(folder, required=config.resume_from == "latest")
        elif chosen.resolve().parent == folder.resolve():
            _refuse_branch(folder, chosen)
        elif (step := _newest_step(folder, required=False)) >= 0:  # the same command again, a requeued job's say
            print(f"train: {folder} has already gone on from {chosen}, or has a life of its own", file=sys.stderr)

    processes.on_main(enter)
    step = processes.largest(step)
    found = folder / checkpoint.checkpoint_name(step) if step >= 0 else chosen
    return Start(found, locks[0] if locks else None)


def _newest_step(folder: Path, required: bool) -> int:
    newest, passed_over = checkpoint.newest_valid(folder)
    for line in passed_over:
        print(f"train: {line}", file=sys.stderr)
    if newest is not None:
        return int(newest.name[5:])
    if required:
        raise UserError(f"--resume_from latest: {folder} holds no valid checkpoint")
    if passed_over:
        raise UserError(
            f"out_dir {folder} holds checkpoints, but none is valid; move them away to start anew, or choose another "
            "--out_dir"
        )
    return -1


def _refuse_branch(folder: Path, chosen: Path) -> None:
    if later := checkpoint.later_in(folder, chosen):
        names = ", ".join(path.name for path in later)
        raise UserError(
            f"out_dir {folder} holds later checkpoints ({names}), which 'latest' would take for this run's; "
            "move them away or choose another --out_dir"
        )

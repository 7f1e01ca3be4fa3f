"""Which runs are due, in which order, and how many of them fit into the time given."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from benchmarks.ablate.grid import Grid, fingerprint
from benchmarks.ablate.results import Results
from benchmarks.ablate.training import Job, begun
from toolkit.errors import UserError

Runner = Callable[[Job, Event], dict]


@dataclass
class Clock:
    """The time given, counted from its making."""

    minutes: float | None
    now: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.now()

    def left(self) -> float:
        """Seconds; infinitely many without a limit."""
        return float("inf") if self.minutes is None else 60 * self.minutes - (self.now() - self.start)


def due(grid: Grid, results: Results, out: Path, retry: bool = False, **how) -> list[Job]:
    """The runs that results lack: the control's first, all variants by a seed before the next seed. With `retry` those
    that failed, too. `how`: further fields of the jobs. Raises UserError if a variant was measured, or begun, under the
    same name as another training."""
    jobs = []
    definitions = {name: grid.definition(name) for name in grid.order()}
    for seed in grid.seeds:
        for name in grid.order():
            known, definition = results.find(name, seed), definitions[name]
            if known is not None and known["definition"] != fingerprint(definition):
                raise UserError(_changed(name, known["options"], definition, out))
            if known is None or (retry and known["status"] == "failed"):
                config = grid.config(name, seed, out / "runs" / name / f"seed_{seed}")
                job = Job(name, seed, config, definition, grid.on_gpu, **how)
                if (before := begun(job)["definition"]) != definition:
                    raise UserError(_changed(name, before["options"], definition, out))
                jobs.append(job)
    return jobs


def _changed(name: str, before: dict, definition: dict, out: Path) -> str:
    now = definition["options"]
    what = [
        f"{option} {before.get(option, 'default')} -> {now.get(option, 'default')}"
        for option in dict.fromkeys([*before, *now])
        if before.get(option) != now.get(option)
    ]
    return (
        f"variant {name} was measured as another training ({', '.join(what) or 'other data or another evaluation'}); "
        f"give the new one another name or --out, or remove it from {out / 'results.json'} and {out / 'runs'}"
    )


def measure(jobs: list[Job], results: Results, out: Path, runner: Runner, clock: Clock, parallel: int = 1) -> list[Job]:
    """Run them, `parallel` at once, each recorded in results.json as it ends. Returns those that are missing.

    No run is started that would not end in the time left, as far as finished ones tell; runs that are still going when
    time is up are stopped, with a checkpoint from which the same command goes on.
    """
    waiting, missing, stop = list(jobs), [], Event()
    running: dict[Future, Job] = {}
    done = 0
    with ThreadPoolExecutor(parallel) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    if expected(waiting[0], results) > clock.left():
                        missing += waiting
                        waiting = []
                        break
                    job = waiting.pop(0)
                    running[pool.submit(_guarded, runner, job, stop)] = job
                if not running:
                    break
                ended, _ = wait(running, timeout=min(1.0, max(0.0, clock.left())), return_when=FIRST_COMPLETED)
                if clock.left() <= 0:
                    stop.set()
                    ended, _ = wait(running)
                for future in ended:
                    job, found = running.pop(future), future.result()
                    if found["status"] == "interrupted":
                        missing.append(job)
                    else:
                        results.put(found | {"parallel": parallel})
                        results.write(out)
                    done += 1
                    _tell(f"[{done}/{len(jobs)}] {job}: {_in_short(found, results)}")
        finally:
            stop.set()  # on Ctrl-C too: the pool waits until every training has saved
    return sorted(missing, key=jobs.index)


def expected(job: Job, results: Results) -> float:
    """Seconds a run takes, by those of its variant that are finished, else by all; 0 if none is."""
    finished = [run for run in results.runs if run["status"] == "finished"]
    own = [run["wall_seconds"] for run in finished if run["variant"] == job.variant]
    known = own or [run["wall_seconds"] for run in finished]
    return sum(known) / len(known) if known else 0.0


def _guarded(runner: Runner, job: Job, stop: Event) -> dict:
    """A run that cannot even be started is one that failed, not the end of the others."""
    try:
        return runner(job, stop)
    except (UserError, OSError, RuntimeError) as error:
        return {
            "variant": job.variant, "seed": job.seed, "status": "failed", "reason": " ".join(str(error).split())[:400],
            "definition": fingerprint(job.definition), "options": job.definition["options"], "points": [],
            "images_seen": 0, "wall_seconds": 0.0,
        }  # fmt: skip


def _in_short(run: dict, results: Results) -> str:
    if run["status"] != "finished":
        return f"{run['status']}: {run['reason']}"
    name = results.grid["criterion"]
    value = run["points"][-1]["scores"].get(name)
    return f"{name} {'none' if value is None else f'{value:.4g}'}, {run['wall_seconds']:.0f} s"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

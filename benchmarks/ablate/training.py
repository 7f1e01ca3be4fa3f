"""One run of the grid: the command as users start it, and what its folder tells afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Event

import torch

import toolkit
from benchmarks.ablate.grid import fingerprint
from evaluation.run_scores.reading import read_evaluations
from toolkit.command_line import dump
from toolkit.config import ResolvedConfig
from toolkit.durable import write_whole
from toolkit.networks.architecture import ModelConfig
from toolkit.networks.cost import Cost, costs
from toolkit.run_folder.checkpoint import GENERATOR, checkpoints
from toolkit.run_folder.plots import split_attempts
from toolkit.run_folder.records import read_events, read_log

REPOSITORY = Path(__file__).resolve().parents[2]
STOPPED = {75, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}
"""Exit codes of a training that was stopped and goes on with the same command; so do those that a signal killed."""
PATHS = ("real", "prompts", "fake", "checkpoint")
"""Parts of a protocol that tell of places on this machine; hashes stand beside them."""


@dataclass(frozen=True)
class Job:
    """A variant with a seed."""

    variant: str
    seed: int
    config: ResolvedConfig
    definition: dict
    on_gpu: bool = False
    threads: int = 1
    keep: bool = False
    """Whether its checkpoints stay; else only the averaged generator does."""

    @property
    def folder(self) -> Path:
        return Path(self.config.out_dir)

    def beside(self, suffix: str) -> Path:
        """OUT/runs/VARIANT/seed_0SUFFIX."""
        return self.folder.with_name(self.folder.name + suffix)

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def begun(job: Job) -> dict:
    """What earlier calls noted of a run that has not ended: its definition and the seconds they took."""
    try:
        return json.loads(job.beside(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"definition": job.definition, "wall_seconds": 0.0}


def _note(job: Job, content: dict) -> None:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(job.beside(".json"), json.dumps(content, indent=1).encode())


def train(job: Job, stop: Event) -> dict:
    """Run it, or go on with it, to its end or until `stop`. Returns its record, of status finished, failed or
    interrupted."""
    start, log, before = time.monotonic(), job.beside(".log"), begun(job)
    _note(job, before)
    code = _command(job, log, stop)
    wall = before["wall_seconds"] + time.monotonic() - start
    _note(job, before | {"wall_seconds": wall})
    if code in STOPPED or code < 0:
        return {"variant": job.variant, "seed": job.seed, "status": "interrupted", "reason": f"exit code {code}"}
    return record(job, code, _last_line(log), wall)


def _command(job: Job, log: Path, stop: Event) -> int:
    config = job.beside(".yaml")
    write_whole(config, dump(job.config).encode())
    script = REPOSITORY / ("toolkit/train.py" if job.on_gpu else "benchmarks/ablate/clocked_train.py")
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": _python_path()}
    environment |= {} if job.on_gpu else {"ACCELERATE_USE_CPU": "true"}
    environment.setdefault("TEXT_GAN_CACHE", str(job.folder.parents[2].resolve() / "cache"))  # reference features
    with log.open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, str(script), "--config", str(config)], stdin=subprocess.DEVNULL, stdout=told, stderr=told,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if stop.wait(0.2):
                    process.terminate()  # it saves and ends; its own session keeps a Ctrl-C from reaching it twice
                    process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
    return process.returncode


def _python_path() -> str:
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:400]


def record(job: Job, code: int, said: str, wall: float) -> dict:
    """What a training that has ended leaves in results.json; checkpoints are cut down to the generator."""
    config, folder = job.config, job.folder
    evaluations, _ = read_evaluations(folder)
    pace = seconds_per_kimg(folder, config.eval_every)
    points = [_point(one, config, pace) for one in evaluations if one.step is not None]
    reason = said.replace(str(folder), "RUN") if code else ""
    if not code and [point["step"] for point in points][-1:] != [config.total_steps]:
        reason = _why_unevaluated(folder)
    events = [event for event in read_events(folder) if event.get("level") in ("warning", "action")]
    names = [str(event.get("name")) for event in events]
    if not job.keep and not reason:
        _keep_generator(folder)
    return {
        "variant": job.variant,
        "seed": job.seed,
        "status": "failed" if reason else "finished",
        "reason": reason,
        "definition": fingerprint(job.definition),
        "options": job.definition["options"],
        "images_seen": points[-1]["images_seen"] if points else 0,
        "points": points,
        "seconds_per_kimg": pace,
        "clock": "wall" if job.on_gpu else "process CPU time",
        "wall_seconds": round(wall, 1),
        **costs_of(config.architecture()),
        "findings": {name: names.count(name) for name in sorted(set(names))},
        "collapsed": "collapse" in names,
        "protocol": _protocol(evaluations[-1].protocol) if evaluations else {},
        "device": device_name(job.on_gpu),
        "versions": {name: version(name) for name in ("torch", "accelerate")} | {"toolkit": toolkit.__version__},
    }


def _point(one, config: ResolvedConfig, pace: float | None) -> dict:
    seen = one.step * config.batch * config.d_steps
    seconds = None if pace is None else round(pace * seen / 1000, 3)
    return {"step": one.step, "images_seen": seen, "training_seconds": seconds, "scores": one.scores}


def seconds_per_kimg(folder: Path, every: int) -> float | None:
    """Seconds of training per 1,000 images, by the images_per_second of the log. Its first line, which holds what is
    done once, and the lines at and after an evaluation, which hold samples and plots, do not count, where there are
    others. Evaluations themselves are in none."""
    kept, _ = split_attempts(read_log(folder))
    spans = []
    for before, line in zip([None, *kept], kept, strict=False):
        rate, seen = line.get("images_per_second"), line["images_seen"] - (before["images_seen"] if before else 0)
        if rate:
            clean = before is not None and line["step"] % every and before["step"] % every
            spans.append((bool(clean), seen, seen / rate))
    chosen = [span for span in spans if span[0]] or spans
    return sum(span[2] for span in chosen) / sum(span[1] for span in chosen) * 1000 if chosen else None


def _why_unevaluated(folder: Path) -> str:
    told = [event for event in read_events(folder) if event.get("name") in ("not_evaluated", "not_written")]
    return f"no last evaluation: {told[-1].get('text')}" if told else "no last evaluation"


def _protocol(protocol: dict) -> dict:
    return {name: value for name, value in protocol.items() if name not in PATHS}


def _keep_generator(folder: Path) -> None:
    found = checkpoints(folder)
    if found and (found[-1] / GENERATOR).is_file():
        (found[-1] / GENERATOR).replace(folder / GENERATOR)
        for path in found:
            shutil.rmtree(path)


@cache
def costs_of(architecture: ModelConfig) -> dict:
    """{"parameters": {"G", "D"}, "multiply_adds": {"G", "D"}}, the latter of one image."""
    found = costs(architecture).items()
    return {field: {name: getattr(cost, field) for name, cost in found} for field in Cost._fields}


def device_name(on_gpu: bool) -> str:
    """'NVIDIA H100 80GB HBM3', '2 CPU cores'."""
    return torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPU cores"

"""Command: python -m toolkit.doctor --config configs/t4.yaml --data SHARDS --out_dir RUN, before an overnight run.

Takes the options of training and the same launchers, and writes nothing to the run folder.
"""

import dataclasses
import os
import sys
from pathlib import Path

import torch

from toolkit.checks import memory
from toolkit.checks.checkup import (
    FAIL,
    OK,
    WARN,
    Report,
    check_encoder,
    check_folder,
    check_machine,
    check_memory,
    check_trackers,
    checkpoint_bytes,
    open_data,
)
from toolkit.checks.micro_batch import largest_micro_batch
from toolkit.checks.pace import Pace, measure
from toolkit.command_line import run
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.data.worker_count import WorkerCount
from toolkit.errors import UserError
from toolkit.launching.launch import start_accelerator
from toolkit.run_folder import checkpoint
from toolkit.train import check_evaluation
from toolkit.training.trainer import Trainer


def main(options: TrainConfig) -> None:
    config = options.resolved()
    try:
        accelerator = start_accelerator(config)
    except UserError as error:
        report = Report(shown=os.environ.get("RANK", "0") == "0")
        report.add(FAIL, "processes", str(error))
        sys.exit(conclude(report, ""))
    report = Report(accelerator.is_main_process)
    total = examine(report, config, accelerator, options.tries_batch_gpu)
    code = conclude(report, total)
    accelerator.wait_for_everyone()  # a process that leaves with an error has its launcher end the others
    accelerator.end_training()
    sys.exit(code)


def examine(report: Report, config: ResolvedConfig, accelerator, tries: bool) -> str:
    """All checks, the cheap ones first; the measured ones only where nothing has failed. Returns the time it takes.

    `tries`: whether training would find its micro-batch by trying (batch_gpu 'auto').
    """
    check_machine(report, config, accelerator)
    shards = open_data(report, config, accelerator.num_processes)
    if shards is not None:
        check_encoder(report, shards.manifest.encoder)
        check_memory(report, config, accelerator, tries, shards.manifest.encoder.name)
    # One process after the other would be right for shared disks, but the main one's answer is what counts.
    speed = check_folder(report, config) if accelerator.is_main_process else 1.0
    check_scores(report, config, shards)
    check_trackers(report, config)
    start = find_start(report, config)
    if anywhere(accelerator, bool(report.of(FAIL))) or shards is None:
        if not report.of(FAIL):
            report.add(FAIL, "processes", "a check failed on another process or machine: run the doctor there")
        return ""
    trainer = build(report, config, accelerator, shards, start)
    if trainer is None:
        return ""
    try:
        return time_it(report, trainer, tries, speed)
    except (UserError, RuntimeError) as error:
        if not isinstance(error, UserError) and not memory.is_out_of_memory(error):
            raise
        known = isinstance(error, UserError)
        text = str(error) if known else memory.explain_out_of_memory(config, accelerator.device)
        if accelerator.num_processes > 1:  # the others wait in an exchange, from which only the launcher frees them
            raise UserError(text) from None
        report.add(FAIL, "trial", text)
        return ""


def check_scores(report: Report, config: ResolvedConfig, shards: ShardSet | None) -> None:
    """What the first evaluation needs, hours after the start."""
    if not config.evaluates or shards is None:
        return
    try:
        check_evaluation(config, shards)
    except UserError as error:
        report.add(FAIL, "score", str(error))
        return
    if config.score_weights is None:
        report.add(WARN, "score", "the first evaluation downloads Inception; without network --score_weights FILE")


def build(report: Report, config: ResolvedConfig, accelerator, shards: ShardSet, start: Path | None) -> Trainer | None:
    """A scratch trainer, at the checkpoint if there is one; None, with a FAIL, if there is none on any process."""
    changed: list[str] = []
    trainer, problem = None, ""
    try:
        trainer = Trainer(config, accelerator, shards)
        if start is not None:
            changed = trainer.resume(start)
    except UserError as error:
        problem = str(error)
    if anywhere(accelerator, bool(problem)) or trainer is None:
        report.add(FAIL, "resume" if trainer else "networks", problem or "not possible on another process")
        return None
    if start is not None:
        text = f"{start}, at step {trainer.step_number:,}"
        report.add(OK, "resume", text + (f"; changed since then: {'; '.join(changed)}" if changed else ""))
    return trainer


def find_start(report: Report, config: ResolvedConfig) -> Path | None:
    """The checkpoint that training would go on from."""
    chosen: Path | None
    passed_over: list[str] = []
    if config.resume_from is not None and config.resume_from != "latest":
        chosen = Path(config.resume_from)
        if problem := checkpoint.find_problem(chosen):
            report.add(FAIL, "resume", f"checkpoint {chosen}: {problem}; choose another --resume_from")
            return None
        own, _ = checkpoint.newest_valid(Path(config.out_dir))
        if own is not None and chosen.resolve().parent != own.resolve().parent:
            chosen = own  # as training does: it has gone on from there before
    else:
        chosen, passed_over = checkpoint.newest_valid(Path(config.out_dir))
    for line in passed_over:
        report.add(WARN, "resume", line)
    if chosen is None and (passed_over or config.resume_from):
        report.add(FAIL, "resume", f"{config.out_dir} holds no valid checkpoint; start anew in another --out_dir")
    elif chosen is None:
        report.add(OK, "resume", f"nothing to go on from in {config.out_dir}: training starts anew")
    return chosen


def time_it(report: Report, trainer: Trainer, tries: bool, speed: float) -> str:
    """Steps and data of a scratch trainer. Returns how long the run takes; `speed`: bytes per second to the disk."""
    config, accelerator = trainer.config, trainer.accelerator
    left = max(0, config.total_steps - trainer.step_number)
    if tries:
        found = largest_micro_batch(trainer, config.batch // accelerator.num_processes)
        trainer.configure(dataclasses.replace(config, batch_gpu=found))
        report.add(OK, "batch_gpu", f"auto: {found} images at once")
    if report.shown:
        print("doctor: timing data and steps ...", file=sys.stderr, flush=True)
    pace = measure(trainer)
    describe_pace(report, config, pace, accelerator)
    if left == 0:
        report.add(WARN, "length", f"all {config.total_steps:,} steps are done; raise --iters to go on")
    seconds = pace.total(config, left, checkpoint_bytes(config) / speed)
    return f"{left:,} steps, about {duration(seconds)} with samples and checkpoints"


def describe_pace(report: Report, config: ResolvedConfig, pace: Pace, accelerator) -> None:
    """The step's line and the data's: does one wait for the other?"""
    mean = pace.mean_step(config)
    text = f"{mean:.3g} s ({pace.step:.3g}, with R1 or R2 {pace.penalised:.3g})"
    text += f", {config.batch * config.d_steps / mean:,.1f} images/s of computation"
    if accelerator.device.type == "cuda":
        text += f"; {memory.gib(torch.cuda.max_memory_allocated(accelerator.device))} GiB at the peak"
    report.add(OK, "step", text)
    ratio, cores = mean / pace.loading, os.cpu_count() or 1
    device = "GPU" if accelerator.device.type == "cuda" else "step"
    workers = WorkerCount(config.workers).most
    busy = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * max(1, workers)
    remedy = f"raise --workers ({workers} now)" if busy < cores else f"all {cores} CPU cores are busy loading"
    if workers == 0:
        share = pace.loading / (pace.loading + mean)
        level = WARN if share > 0.1 else OK
        report.add(
            level,
            "loading",
            f"{share:.0%} of the time goes into loading data" + ("; raise --workers above 0" * (level == WARN)),
        )
    elif ratio < 1:
        report.add(
            WARN, "loading", f"the {device} would wait: data takes {1 / ratio:.1f} times as long as a step; {remedy}"
        )
    elif ratio < 1.3:
        report.add(WARN, "loading", f"data is only {ratio:.1f} times as fast as the step; {remedy}")
    else:
        report.add(OK, "loading", f"data is {ratio:.1f} times as fast as the step")


def anywhere(accelerator, failed: bool) -> bool:
    """Whether it is so on any process. All call it."""
    return bool(accelerator.gather(torch.tensor([float(failed)], device=accelerator.device)).max())


def conclude(report: Report, total: str) -> int:
    """Print the verdict; returns the exit code."""
    failed, warnings = report.of(FAIL), report.of(WARN)
    if failed:
        verdict = f"not ready: {', '.join(dict.fromkeys(failed))}"
    elif warnings:
        verdict = (
            f"ready, with {len(warnings)} warning{'s' * (len(warnings) > 1)}: {', '.join(dict.fromkeys(warnings))}"
        )
    else:
        verdict = "ready"
    if report.shown:
        print("\n" + verdict + (f"\n{total}" if total else ""), flush=True)
    return 1 if failed else 0


def duration(seconds: float) -> str:
    """'42 s', '13 min', '7 h 20 min', '3 d 4 h'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


if __name__ == "__main__":
    run(main, TrainConfig)

"""The loop round the training step, and the run folder it fills: config, logs, samples, plots, checkpoints."""

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from toolkit.command_line import dump
from toolkit.durable import write_whole
from toolkit.errors import UserError
from toolkit.run_folder import checkpoint
from toolkit.run_folder.plots import plot_training
from toolkit.run_folder.records import Progress, TrainingLog, WandbLog, Window
from toolkit.run_folder.sample_grid import SampleGrid
from toolkit.run_folder.snapshot import take_snapshot
from toolkit.stopping import StopRequest
from toolkit.trainer import Trainer


def prepare_folder(trainer: Trainer) -> None:
    """Create the run folder and record the resolved config, before anything else. Raises UserError if it cannot."""
    run = Path(trainer.config.out_dir)

    def write_config() -> None:
        try:
            run.mkdir(parents=True, exist_ok=True)
            for half_written in run.glob(".tmp-ckpt_*"):  # left by a kill while saving
                shutil.rmtree(half_written, ignore_errors=True)
            write_whole(run / "config.yaml", dump(trainer.config).encode())
        except OSError as error:
            raise UserError(f"out_dir {run} is not writable ({error.strerror}); choose another --out_dir") from None

    on_main(trainer.accelerator, write_config)


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Run `action` on the main process. If it fails there, all processes stop: none waits for one that is gone."""
    error = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as caught:
            error = caught
    failed = accelerator.reduce(torch.tensor(float(error is not None), device=accelerator.device), reduction="sum")
    if error is not None:
        raise error
    if failed > 0:
        raise UserError("stopped, because the main process could not go on (its message says why)")


class Run:
    """Drives a Trainer to its last step. Files are written by the main process; collectives by all."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.config, self.accelerator = trainer, trainer.config, trainer.accelerator
        self.folder = Path(self.config.out_dir)
        self.main = self.accelerator.is_main_process
        self.grid = SampleGrid(trainer.shards, self.config)
        self.window, self.window_start = Window(), time.perf_counter()
        self.saved_step = trainer.step_number
        if self.main:
            self.log = TrainingLog(self.folder, trainer.step_number)
            self.grid.write_reals(self.folder)
            self.wandb = WandbLog(self.config, dataclasses.asdict(self.config), trainer.wandb_run_id)
            trainer.wandb_run_id = self.wandb.run_id or trainer.wandb_run_id

    def fit(self) -> int | None:
        """Train to the end, or to a signal, whose number is returned. Either way the last step is saved."""
        trainer, config = self.trainer, self.config
        stop = StopRequest()
        self.progress = Progress(config.total_steps, trainer.step_number, shown=self.main)
        try:
            while trainer.step_number < config.total_steps:
                self.window.add(trainer.step())
                self.progress.advance()
                if self._due(config.log_every):
                    self._log()
                if self._due(config.sample_every):
                    self._sample()
                if self._due(config.ckpt_every):
                    self._save()
                # Agreeing costs several processes a wait for the device, so they do it every tenth step.
                if (self.accelerator.num_processes == 1 or self._due(10)) and stop.agreed(self.accelerator):
                    break
            self._finish()
        finally:
            stop.restore()
            trainer.close()
            self.progress.close()
            if self.main:
                self.wandb.close()
        return stop.signal

    def _due(self, every: int) -> bool:
        return self.trainer.step_number % every == 0

    def _log(self) -> None:
        """One line of training_log.json: means since the last one. Raises UserError if training has diverged."""
        steps = len(self.window)
        means = self.window.means(self.accelerator)
        seconds = time.perf_counter() - self.window_start
        config, step = self.config, self.trainer.step_number
        line = {"step": step, "images_seen": self.trainer.position} | means
        line |= {"lr_g": config.lr_g, "lr_d": config.lr_d, "ema_decay": self.trainer.ema.decay()}
        line["images_per_second"] = config.batch * config.d_steps * steps / seconds
        if self.accelerator.scaler is not None:
            line["loss_scale"] = self.accelerator.scaler.get_scale()
            if line["loss_scale"] < 1:
                raise UserError(
                    f"the fp16 loss scale sank to {line['loss_scale']} at step {step}: gradients overflow at any "
                    "scale. Resume from the last checkpoint with --mixed_precision no or lower learning rates"
                )
        self.window_start = time.perf_counter()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"training diverged: {', '.join(bad)} not finite at step {step}. The last checkpoint is untouched; "
                "resume from it with lower --lr_g and --lr_d, or --grad_clip 1"
            )
        if self.main:
            self.log.write(line)
            self.progress.show(line)
            self.wandb.log(line)

    def _sample(self) -> None:
        self.trainer.average_statistics()
        if self.main:
            path = self.grid.write(self.trainer.ema, self.folder, self.trainer.step_number)
            plot_training(self.folder)
            self.wandb.log_picture(path, self.trainer.step_number)

    def _save(self) -> None:
        self.trainer.average_statistics()
        on_main(self.accelerator, self._write_checkpoint)
        self.saved_step = self.trainer.step_number

    def _write_checkpoint(self) -> None:
        path = checkpoint.save(self.folder, take_snapshot(self.trainer), self.config.keep)
        self.progress.say(f"saved {path}")

    def _finish(self) -> None:
        if len(self.window):
            self._log()
        if self.saved_step != self.trainer.step_number:
            self._save()
        self._sample()


def describe_end(trainer: Trainer, stopped_by: int | None) -> str:
    """The last line a run prints."""
    config = trainer.config
    where = f"{config.out_dir}/{checkpoint.checkpoint_name(trainer.step_number)}"
    if stopped_by is None:
        return f"done: {trainer.step_number:,} steps, {trainer.position:,} pictures seen; {where}"
    name = signal.Signals(stopped_by).name
    return f"stopped by {name} at step {trainer.step_number:,}, saved {where}; go on with --resume_from latest"

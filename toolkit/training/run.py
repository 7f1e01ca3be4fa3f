"""The loop round the training step: when to log, sample, save, stop, go back."""

import sys
import time
from pathlib import Path

from tqdm import tqdm

from toolkit.errors import Diverged, NotSaved, UserError
from toolkit.health.reports import ACTIONS, Reports
from toolkit.health.score import Scoring
from toolkit.launching import stopping
from toolkit.launching.processes import Processes
from toolkit.run_folder import checkpoint, heartbeat
from toolkit.run_folder.records import Window
from toolkit.training.trainer import Trainer

LOOK_EVERY = 10
"""Steps between looks at the gradients' health on a GPU, which wait for it; on a CPU every step."""


class Run:
    """Drives a Trainer to its last step, a stop or an end for cause. All processes make one and call `fit`."""

    def __init__(self, trainer: Trainer, processes: Processes, scoring: Scoring) -> None:
        self.trainer, self.processes, self.config = trainer, processes, trainer.config
        self.folder = Path(self.config.out_dir)
        self.request = 0
        """Signal number or stop file that ended the run, else 0."""
        self.reason: UserError | str | None = None
        """Why the monitor or the score ended the run early."""
        self.reports = Reports(trainer, processes.main, scoring)
        self.heartbeat = heartbeat.Heartbeat(self.folder, processes.index)
        self.watchdog = heartbeat.Watchdog(self.folder, processes.index, self.config.timeout, processes.count > 1)
        self.saved_step = trainer.step_number if trainer.position else -1
        self.sampled_step = -1
        self._open_window()

    def fit(self) -> None:
        """Train to the end, to a stop (`request`) or to a cause (`reason`); each time the last step is saved.

        Raises Diverged when rollbacks are used up, UserError for what cannot go on.
        """
        trainer = self.trainer
        self.stop = stopping.StopRequest(self.folder, watch_file=self.processes.main)
        try:
            if self.saved_step < 0:
                self._save()  # shows before the night that disk and folder will do, and is what a rollback goes back to
            else:
                self._judge()  # if it was killed between saving and that
            while not self._over():
                try:
                    self._advance()
                    if self._over():
                        self._finish()
                except Diverged as error:
                    self._roll_back(error)
            if self.processes.main:
                (self.folder / stopping.STOP_FILE).unlink(missing_ok=True)
                heartbeat.remove(self.folder)
        except RuntimeError as error:
            raise self._lost_contact(error) from error
        finally:
            self.watchdog.stop()
            self.stop.restore()
            trainer.close()
            self.reports.close()

    def _over(self) -> bool:
        return bool(self.trainer.step_number >= self.config.total_steps or self.request or self.reason)

    def _advance(self) -> None:
        """One step and what is due after it; or none, if all processes agree that a stop was asked for."""
        self.request = self.processes.largest(self.stop.wait_for(self.trainer.fetch))
        if self.request:
            return
        before = self.trainer.step_number
        self.window.add(self.trainer.step())
        self._check_health()
        if self.trainer.step_number == before:  # half precision overflowed: nothing advanced
            return
        self.heartbeat.beat(self.trainer.step_number)
        self.watchdog.feed()
        self.reports.progress.at(self.trainer.step_number)
        sampled = self._due(self.config.sample_every)
        if sampled:
            self._sample()
        evaluates = self._due(self.config.evaluation_steps)
        saves = self._due(self.config.ckpt_every) or (evaluates and self.config.scored_by_evaluation)
        if self._due(self.config.log_every) or saves:
            self._act(*self._log())  # before saving too: what has diverged must not become the newest checkpoint
        if self._due(self.config.check_ranks_every):
            self._check_ranks()
        if saves:
            self._save()
        if (saves or evaluates) and not self._over():  # `_finish` saves before it evaluates
            self._judge()
        if (sampled or evaluates) and not self._over():
            self.reports.verdict()

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.step_number % every == 0

    def _check_health(self, now: bool = False) -> None:
        """Raises Diverged if a gradient was not finite (nothing has moved since) or the fp16 scale is at its floor."""
        step, scaler = self.trainer.step_number, self.trainer.accelerator.scaler
        if self.trainer.skipped and scaler.get_scale() < 1:
            raise Diverged(
                f"the fp16 loss scale sank to {scaler.get_scale():.2g} at step {step:,}: gradients overflow at any "
                "scale (try --mixed_precision no or lower learning rates)"
            )
        look = now or self.trainer.device.type == "cpu" or self._due(LOOK_EVERY)
        if look and self.trainer.broken > 0:
            raise Diverged(f"a loss or gradient was no longer finite at step {step:,} or up to {LOOK_EVERY} before")

    def _check_ranks(self) -> None:
        different = self.processes.equal(self.trainer.fingerprint())
        if different:
            raise UserError(
                f"the networks of process {', '.join(map(str, different))} are no longer those of process 0 at step "
                f"{self.trainer.step_number:,}; run the same command again to go on from the last checkpoint"
            )

    def _open_window(self) -> None:
        """Start anew on what the next log line tells."""
        self.window = Window()
        self.measured: dict[str, float] = {}
        self.window_start = time.perf_counter(), self.trainer.images_seen

    def _log(self) -> tuple[str, str]:
        """One line of training_log.json: means since the last one. Returns (action, reason) of the main process."""
        trainer, (since, seen) = self.trainer, self.window_start
        line: dict[str, float] = {"step": trainer.step_number, "images_seen": trainer.images_seen}
        line |= self.window.read(trainer.accelerator) | self.measured | trainer.settings()
        line["images_per_second"] = (trainer.images_seen - seen) / (time.perf_counter() - since)
        self._open_window()
        return self.reports.line(line)

    def _act(self, action: str, reason: str) -> None:
        """Do what the main process's monitor asks for. Raises Diverged for a rollback."""
        action = ACTIONS[self.processes.largest(ACTIONS.index(action))]
        if action == "rollback":
            raise Diverged(reason)
        if action == "stop":
            self.reason = Diverged(reason or "stopped (the main process says why)")
        if action == "lower_d_steps":
            self.trainer.adaptive.d_steps = max(1, self.trainer.adaptive.d_steps - 1)

    def _sample(self) -> None:
        self.sampled_step = self.trainer.step_number
        self.trainer.average_statistics()
        pairs = zip(("diversity", "text_sensitivity", "same_layout"), self.reports.samples(), strict=True)
        self.measured |= {name: value for name, value in pairs if value == value}  # not NaN

    def _save(self, last: bool = False) -> None:
        self._check_health(now=True)
        self.trainer.average_statistics()
        try:
            self.processes.on_main(self.reports.write_checkpoint)
            self.saved_step = self.trainer.step_number
        except NotSaved as error:
            if last or self.saved_step < 0 or self.config.on_save_error == "stop":
                raise
            self.reports.say("warning", "not_saved", f"{error}; training goes on: make room before the next one")

    def _judge(self) -> None:
        """Evaluate and score what is due at this step and not yet there. Ends the run if the last `patience` scores
        brought no gain."""
        config, last = self.config, self._over() and not self.request
        if (last or self._due(config.evaluation_steps)) and self.processes.largest(self.reports.unevaluated()):
            self._evaluate()
        due = last or config.scored_by_evaluation or self._due(config.ckpt_every)
        if due and self.saved_step == self.trainer.step_number and self.processes.largest(self.reports.unrated()):
            without_gain = self.processes.largest(self.reports.rate())
            if config.patience and without_gain >= config.patience:
                self.reason = f"the last {without_gain} scores brought no gain (--patience {config.patience})"

    def _evaluate(self) -> None:
        self._check_health(now=True)
        start = time.perf_counter()
        self.trainer.average_statistics()
        self.watchdog.feed()  # before and after, for it may take half as long as the watchdog waits
        self.reports.evaluate(self.processes)
        self.watchdog.feed()
        self.heartbeat.beat(self.trainer.step_number)
        since, seen = self.window_start
        self.window_start = since + time.perf_counter() - start, seen  # no part of the training's speed

    def _roll_back(self, error: Diverged) -> None:
        """Back to the last good checkpoint, with lower learning rates and over other images. Raises Diverged."""
        trainer, config = self.trainer, self.config
        if self.request:
            self.reports.say("action", "diverged", f"{error}; not saved, step {self.saved_step:,} is the last good one")
            return
        if config.on_divergence == "stop" or trainer.rollbacks >= config.max_rollbacks:
            self.reports.verdict()
            tried = f" after {trainer.rollbacks} rollbacks" if trainer.rollbacks else ""
            raise Diverged(
                f"training diverged{tried}: {error}. Checkpoints are untouched; see README, 'When it diverges'"
            )
        rollbacks, attempt, diverged_at = trainer.rollbacks + 1, trainer.attempt + 1, trainer.step_number
        folder = self.folder / checkpoint.checkpoint_name(self._good_step())
        tracked = trainer.wandb_run_id
        trainer.resume(folder)
        trainer.wandb_run_id = tracked
        self.processes.largest(0)  # all have read it before the main process replaces it
        trainer.rollbacks, trainer.attempt = rollbacks, attempt
        skipped = config.rollback_skip * config.batch * trainer.adaptive.d_steps
        trainer.position, trainer.left_out = trainer.position + skipped, trainer.left_out + skipped
        trainer.apply_rollbacks()
        self.reason = None
        self._open_window()
        self.reports.say("action", "rollback", (
            f"{error}; back from step {diverged_at:,} to {folder.name}, rollback {rollbacks} of "
            f"{config.max_rollbacks}: learning rates x {config.rollback_lr**rollbacks:g}, R1 x "
            f"{config.rollback_r1**rollbacks:g}, {skipped:,} images left out"
        ))  # fmt: skip
        self.reports.went_back()
        self._save()  # under the same name: a kill from here on does not forget the rollback

    def _good_step(self) -> int:
        """Step of the newest valid checkpoint, the same on all processes."""
        found = -1
        if self.processes.main:
            newest, _ = checkpoint.newest_valid(self.folder)
            found = int(newest.name[5:]) if newest else -1
        found = self.processes.largest(found)
        if found < 0:
            raise Diverged(f"training diverged, and {self.folder} holds no valid checkpoint to go back to")
        return found

    def _finish(self) -> None:
        if not self.request and self.sampled_step != self.trainer.step_number:
            self._sample()
        if self.window.steps:
            self._act(*self._log())
        if self.saved_step != self.trainer.step_number:
            self._save(last=True)
        if not self.request:
            self._judge()
        self.reports.verdict()

    def _lost_contact(self, error: RuntimeError) -> Exception:
        """What a failed exchange between processes means to the user; `error` itself if it is something else."""
        told = str(error).lower()
        if self.processes.count == 1 or not any(word in told for word in ("gloo", "nccl", "timed out", "connection")):
            return error
        index, step = self.processes.index, self.trainer.step_number
        # At once: if another process has died, the launcher may end this one before it has found out which.
        line = f"train: process {index} lost contact with another at step {step:,}: {str(error).splitlines()[0]}"
        tqdm.write(line, file=sys.stderr)
        missing = heartbeat.silent(self.folder, index, min(5.0, self.config.timeout / 2))
        who = "; ".join(missing) or "another process is gone (its own message, or the launcher's, says why)"
        return UserError(
            f"process {index} waited in vain at step {step:,}: {who}; run the same command again to go on from the "
            "last checkpoint"
        )


def describe_end(run: Run) -> str:
    """The last line a run prints."""
    trainer = run.trainer
    where = f"{run.folder}/{checkpoint.checkpoint_name(run.saved_step)}"
    if run.request:
        return (
            f"stopped by {stopping.describe(run.request)} at step {trainer.step_number:,}, saved {where}; "
            "run the same command again to go on"
        )
    early = f" ended early: {run.reason};" if run.reason else ""
    return f"done:{early} {trainer.step_number:,} steps, {trainer.images_seen:,} images seen; {where}"

"""What a run tells its user while it trains: log lines, findings, samples, plots, scores. The main process's part."""

import dataclasses
import math
import sys
from pathlib import Path

from tqdm import tqdm

from toolkit.command_line import dump
from toolkit.durable import write_whole
from toolkit.errors import UserError
from toolkit.health.monitor import Monitor
from toolkit.health.score import Scoring
from toolkit.health.signs import Finding
from toolkit.launching.processes import Processes
from toolkit.run_folder import checkpoint
from toolkit.run_folder.best import BestCheckpoint
from toolkit.run_folder.evaluations import UNCERTAINTY, Evaluations
from toolkit.run_folder.plots import plot_training
from toolkit.run_folder.probe import probe
from toolkit.run_folder.records import Progress, TrainingLog, note_event
from toolkit.run_folder.sample_grid import SampleGrid
from toolkit.run_folder.snapshot import take_snapshot
from toolkit.run_folder.trackers import Trackers
from toolkit.training.trainer import Trainer

ACTIONS = ("", "lower_d_steps", "stop", "rollback")
"""What a finding may ask for, in order of weight."""


class Reports:
    """Every process has one; only the main one's writes, draws and judges, the others' do nothing."""

    def __init__(self, trainer: Trainer, main: bool, scoring: Scoring) -> None:
        self.trainer, self.config, self.main, self.scoring = trainer, trainer.config, main, scoring
        self.folder = Path(self.config.out_dir)
        self.best: BestCheckpoint | None = None
        self._judged = self._rated = -1
        self.progress = Progress(self.config.total_steps, trainer.step_number, shown=main)
        if not main:
            return
        self.grid = SampleGrid(trainer.shards, self.config)
        try:
            write_whole(self.folder / "config.yaml", dump(self.config).encode())
            self.grid.write_reals(self.folder)
            self.log = TrainingLog(self.folder, trainer.step_number, trainer.attempt)
        except OSError as error:
            raise UserError(
                f"out_dir {self.folder} cannot be written ({error.strerror}); make room or choose another --out_dir"
            ) from None
        self.monitor = Monitor(self.config, self.config.loss, self.log.kept)
        settings = dataclasses.asdict(self.config)
        self.trackers = Trackers(self.config, settings, trainer.wandb_run_id, trainer.step_number)
        trainer.wandb_run_id = self.trackers.wandb_run_id or trainer.wandb_run_id
        self.evaluations = Evaluations(self.folder, trainer.step_number)
        if scoring.metric:
            self.best = BestCheckpoint(
                self.folder, scoring.metric, trainer.step_number, scoring.higher_is_better, formerly=self.config.score
            )

    def say(self, level: str, name: str, text: str) -> None:
        """On the console and in events.json; warnings and actions to the trackers too."""
        if self.main:
            note_event(self.folder, self.trainer.step_number, level, name, text)
            self.progress.say(f"step {self.trainer.step_number:,}: {text}")
            if level != "note":
                self.trackers.alert(name, text)

    def verdict(self) -> None:
        """The plots so far, and the run's health in a sentence."""
        if self.main and self._judged != self.trainer.step_number:
            self._judged = self.trainer.step_number
            try:
                if plots := plot_training(self.folder):
                    self.trackers.log_image("plots", plots, self.trainer.step_number)
            except OSError as error:
                self.say("warning", "not_written", f"plots could not be written ({error.strerror})")
            self.say("note", "verdict", self.monitor.verdict())

    def line(self, line: dict) -> tuple[str, str]:
        """Log it and judge it. Returns the weightiest action asked for and its reason, '' and '' if none."""
        if not self.main:
            return "", ""
        self.log.write(line)
        self.progress.show(line)
        self.trackers.log(line)
        findings = self.monitor.observe(line)
        for finding in findings:
            self.say(finding.level, finding.name, finding.text)
        asked = [(_weigh(finding), finding.text) for finding in findings if finding.action]
        return max(asked, key=lambda pair: ACTIONS.index(pair[0]), default=("", ""))

    def samples(self) -> list[float]:
        """Draw the grid of fixed prompts. Returns [diversity, text sensitivity, same layout], NaN where unknown.

        A full disk costs an image, not the run.
        """
        if not self.main:
            return [math.nan] * 3
        step, images = self.trainer.step_number, self.grid.draw(self.trainer.ema)
        try:
            self.trackers.log_image("samples", self.grid.write(images, self.folder, step), step)
        except OSError as error:
            self.say("warning", "not_written", f"samples could not be written ({error.strerror})")
        return [math.nan if value is None else value for value in probe(*self.grid.arrange(images))]

    def write_checkpoint(self) -> None:
        best = self.best.step if self.best else None
        path = checkpoint.save(self.folder, take_snapshot(self.trainer), self.config.keep, best)
        self.progress.say(f"saved {path}")

    def unevaluated(self) -> int:
        """1 if the present step still lacks its evaluation, on the main process."""
        wanted = self.main and self.scoring.evaluate is not None
        return int(wanted and not self.evaluations.tried(self.trainer.step_number))

    def evaluate(self, processes: Processes) -> None:
        """Evaluate and write down the report. All processes call it; what fails on one costs the evaluation alone."""
        report, failure = None, ""
        assert self.scoring.evaluate is not None  # or `unevaluated` would have said so
        try:
            report = self.scoring.evaluate(self.trainer)
        except Exception as error:  # no memory, damaged weights, time is up: nothing that must end a night's run
            failure = _one_line(error)
            if not self.main and not isinstance(error, UserError):  # which the main process has, too
                tqdm.write(f"train: process {processes.index}: no evaluation: {failure}", file=sys.stderr)
        if processes.largest(int(failure != "")):
            self._give_up(failure or "another process could not go on (its message says why)")
        elif self.main:
            try:
                if report is None:
                    raise TypeError("the main process got nothing")
                self._note_evaluation(report)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                self._give_up(f"the report is none ({_one_line(error)})")

    def _give_up(self, why: str) -> None:
        if self.main:
            self.evaluations.give_up(self.trainer.step_number)
            self.say("warning", "not_evaluated", f"no evaluation: {why}")

    def _note_evaluation(self, report: dict) -> None:
        """In its file, for the trackers, on the console. A full disk costs the file, not the run and not the scores."""
        step, image = self.trainer.step_number, None
        try:
            image = self.evaluations.add(step, self.trainer.images_seen, report)
        except OSError as error:
            self.say("warning", "not_written", f"the evaluation could not be written ({error.strerror})")
        scores = self.evaluations.scores(step)
        told = [f"{name} {value:.4g}" for name, value in scores.items() if not UNCERTAINTY.search(name)]
        self.say("note", "evaluation", f"evaluation: {', '.join(told) or 'no number'}")
        self.trackers.log({"step": step} | {f"eval/{name}": value for name, value in scores.items()})
        if image:
            self.trackers.log_image("eval/nearest", image, step)

    def unrated(self) -> int:
        """1 if the present step still lacks its score and there is something to take it from, on the main process."""
        step = self.trainer.step_number
        if (
            self.best is None
            or self._rated == step
            or (self.scoring.by_evaluation and not self.evaluations.tried(step))
        ):
            return 0
        return int(not math.isfinite(dict(self.best.history).get(step, math.nan)))

    def rate(self) -> int:
        """Score the checkpoint just saved. Returns how many scores came since the last gain."""
        if self.best is None:  # on all but the main process
            return 0
        step, value = self.trainer.step_number, math.nan
        self._rated = step
        try:
            if self.scoring.score is None:
                value = self.evaluations.scores(step).get(self.scoring.metric, math.nan)
            else:
                value = self.scoring.score(self.trainer)
        except Exception as error:  # no memory, say: a score must not end a night's run
            self.say("warning", "not_scored", f"no score: {_one_line(error)}")
        self.say("note", "score", self.best.add(step, value))
        self.trackers.log({"step": step, "score": value})
        return self.best.without_gain

    def went_back(self) -> None:
        """The trainer stands at an earlier step again."""
        self.progress.at(self.trainer.step_number)
        if self.main:
            self.evaluations.forget_after(self.trainer.step_number)

    def close(self) -> None:
        self.progress.close()
        if self.main:
            self.trackers.close()


def _weigh(finding: Finding) -> str:
    """What has diverged is not saved: it goes the way of a rollback, which knows what `on_divergence` says."""
    return "rollback" if finding.name in ("diverged", "loss_scale") else finding.action


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

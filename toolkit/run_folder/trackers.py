"""Weights & Biases and TensorBoard beside the local files, which stay the record: whatever goes wrong with a tracker is
said once, in one line, and neither stops nor holds up the training.

Both go through Accelerate's trackers. The step is a value of each line, not the tracker's own counter: wandb drops what
it is sent with a lower counter than before, which is everything a run resumed from an older checkpoint does again.
"""

import contextlib
import json
import math
import netrc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image
from tqdm import tqdm

from toolkit.config import ResolvedConfig

PATIENCE = 30
"""Most seconds that wandb's start may take, and its end: a network that is gone must not hold up the processes that
wait for the main one, nor the end of a job."""
WANDB_HOST = "https://api.wandb.ai"


class Trackers:
    """The trackers of `config.track`, for the main process alone, once there is an Accelerator (whose trackers ask it
    which process they are in)."""

    def __init__(self, config: ResolvedConfig, settings: dict, wandb_run_id: str | None, step: int = 0) -> None:
        """`settings` is stored as the run's config: nothing secret belongs there. `wandb_run_id` is that of the run to
        go on with, None for a new one; `step` is the step resumed from, after which TensorBoard hides what it had."""
        self._open: dict[str, _Wandb | _TensorBoard] = {}
        self.wandb_run_id = wandb_run_id
        starts: dict[str, Callable[[], _Wandb | _TensorBoard]] = {
            "wandb": lambda: _Wandb(config, settings, wandb_run_id),
            "tensorboard": lambda: _TensorBoard(Path(config.out_dir), settings, step),
        }
        for name in config.trackers:
            try:
                self._open[name] = starts[name]()
            except Exception as error:
                _say_off(name, error)
        if isinstance(wandb := self._open.get("wandb"), _Wandb):
            self.wandb_run_id = wandb.run_id

    def log(self, line: dict) -> None:
        """The numbers of a log line at its `line["step"]`; what is not finite or not a number is left out."""
        step = line["step"]
        numbers = {name: value for name, value in line.items() if name != "step" and _is_number(value)}
        self._all(lambda tracker: tracker.log(numbers, step))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """The image file as `name`, one after another along the steps."""
        self._all(lambda tracker: tracker.log_image(name, path, step))

    def alert(self, title: str, text: str) -> None:
        """A message to whoever watches: wandb mails it, TensorBoard shows it as text."""
        self._all(lambda tracker: tracker.alert(title, text))

    def close(self) -> None:
        self._all(lambda tracker: tracker.close())
        self._open = {}

    def _all(self, action: Callable[["_Wandb | _TensorBoard"], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._open[name]
                _say_off(name, error)


class _Wandb:
    """A run of wandb. Online only with a key and a server that answers, else stored for `wandb sync`."""

    def __init__(self, config: ResolvedConfig, settings: dict, run_id: str | None) -> None:
        import wandb

        self._wandb = wandb
        mode, why = config.wandb_mode, ""
        if mode == "online" and not has_wandb_key():
            mode, why = "offline", "no API key: set WANDB_API_KEY or run `wandb login`"
        try:
            self._tracker = self._start(config, settings, run_id, mode)
        except Exception as error:
            if mode == "offline":
                raise
            why = _one_line(error)
            wandb.teardown()  # its service holds on to the id of the run that did not start
            self._tracker = self._start(config, settings, run_id, "offline")
        if why:
            _say(f"wandb is not online ({why}); the run is stored for `wandb sync` in {config.out_dir}/wandb")
        run = self._tracker.tracker
        self.run_id = run.id
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def _start(self, config: ResolvedConfig, settings: dict, run_id: str | None, mode: str) -> WandBTracker:
        options: dict[str, Any] = {
            # argv, environment, code and packages may hold secrets and are no part of the record
            "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False, "save_code": False,
            "disable_code": True, "disable_git": True, "console": "off",
            "silent": True, "init_timeout": PATIENCE, "login_timeout": PATIENCE,
            "finish_timeout": PATIENCE, "finish_timeout_raises": True,
        }  # fmt: skip
        known = {name: value for name, value in options.items() if name in self._wandb.Settings.model_fields}
        tracker = WandBTracker(
            config.track_project, name=Path(config.out_dir).resolve().name, dir=config.out_dir, mode=mode,
            id=run_id, resume="allow", config=settings, settings=self._wandb.Settings(**known),
        )  # fmt: skip
        tracker.start()
        return tracker

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._tracker.log(numbers | {"step": step})

    def log_image(self, name: str, path: Path, step: int) -> None:
        self._tracker.log({name: self._wandb.Image(str(path)), "step": step})

    def alert(self, title: str, text: str) -> None:
        self._tracker.tracker.alert(title=title, text=text)

    def close(self) -> None:
        self._tracker.finish()


class _TensorBoard:
    """Event files in out_dir/tensorboard, a new one for each life of the run."""

    def __init__(self, run: Path, settings: dict, step: int) -> None:
        self._run, self._step = run, step
        self._open(step + 1)
        self._tracker.log({"config": "    " + json.dumps(settings, indent=4).replace("\n", "\n    ")}, step=step)

    def _open(self, purge_step: int) -> None:
        """From here on TensorBoard hides what earlier files hold from `purge_step` on."""
        self._tracker = TensorBoardTracker("tensorboard", self._run, purge_step=purge_step)
        try:
            self._tracker.start()
        except ImportError:
            raise RuntimeError("not installed: pip install tensorboard") from None

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._reach(step)
        self._tracker.log(numbers, step=step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        self._reach(step)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")

    def alert(self, title: str, text: str) -> None:
        self._tracker.log({f"alert/{title}": text}, step=self._step)

    def close(self) -> None:
        self._tracker.finish()

    def _reach(self, step: int) -> None:
        """Steps go back when the run was rolled back: without a new file the curves would run backwards."""
        if step < self._step:
            self._tracker.finish()
            self._open(step)
        self._step = step


def has_wandb_key() -> bool:
    """Whether wandb finds a key without asking; a question at a terminal would hold up the run."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _say_off(name: str, error: Exception) -> None:
    if isinstance(error, ModuleNotFoundError):
        error = RuntimeError(f"not installed: pip install {name}")
    _say(f"{name} is off ({_one_line(error)}); local logs go on")


def _say(line: str) -> None:
    tqdm.write(f"train: {line}", file=sys.stderr)

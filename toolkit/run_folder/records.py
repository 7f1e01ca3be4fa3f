"""What a run writes down while it trains: training_log.json, events.json, the progress bar."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from toolkit.durable import write_whole

LOG_NAME, EVENTS_NAME = "training_log.json", "events.json"
PEAKS = ("loss_d", "loss_g")
"""Scalars of which the largest of any step is logged too."""


class Window:
    """Scalars of the steps since the last log line, kept as tensors: reading them would wait for the GPU."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self.steps = 0

    def add(self, stats: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in stats.items():
            self._values.setdefault(name, []).append(value.detach())

    def read(self, accelerator) -> dict[str, float]:
        """Mean of each scalar over the window's steps and all processes, and the largest of each loss as `*_max`.

        Empties the window. All processes call it and get the same numbers.
        """
        names = sorted(self._values)
        if not names:
            return {}
        columns = {name: torch.stack(self._values[name]).float() for name in names}
        peaking = [name for name in PEAKS if name in columns]
        # A step's loss is the mean over processes, as if one had computed it; then comes the largest of the steps.
        mine = torch.cat([torch.stack([columns[name].mean() for name in names]), *(columns[name] for name in peaking)])
        lengths = [len(names), *(len(columns[name]) for name in peaking)]
        means, *steps = accelerator.gather(mine[None]).mean(dim=0).split(lengths)
        peaks = {f"{name}_max": values.max().item() for name, values in zip(peaking, steps, strict=True)}
        self._values.clear()
        self.steps = 0
        return dict(zip(names, means.tolist(), strict=True)) | peaks


class TrainingLog:
    """training_log.json: one JSON object a line, numbers that are not finite as null.

    On resume, lines after the checkpoint's step are dropped. After a rollback they stay: the lines since carry a
    higher `attempt`.
    """

    def __init__(self, run: Path, step: int, attempt: int) -> None:
        self.path = run / LOG_NAME
        old = read_log(run) if step or attempt else []
        self.kept = [line for line in old if line.get("attempt", 0) < attempt or line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in self.kept).encode())

    def write(self, line: dict) -> None:
        _append(self.path, {name: value if _finite(value) else None for name, value in line.items()})


def note_event(run: Path, step: int, level: str, name: str, text: str) -> None:
    """One line of events.json: what the monitor found, what was done about it, how the run ended."""
    _append(run / EVENTS_NAME, {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "step": step, "level": level, "name": name,
                                "text": text})  # fmt: skip


def _append(path: Path, line: dict) -> None:
    """A full disk must not end a training: the line is lost, the run goes on."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        tqdm.write(f"train: {path} cannot be written ({error.strerror})", file=sys.stderr)


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def read_log(run: Path) -> list[dict]:
    """The lines of training_log.json; none without the file."""
    return _read_lines(run / LOG_NAME)


def read_events(run: Path) -> list[dict]:
    """The lines of events.json: step, level, name, text; none without the file."""
    return _read_lines(run / EVENTS_NAME)


def _read_lines(path: Path) -> list[dict]:
    """A half line, left by a kill or a full disk, is passed over, and so is one without a step."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        step = line.get("step") if isinstance(line, dict) else None
        if isinstance(step, int | float) and math.isfinite(step):
            lines.append(line)
    return lines


class Progress:
    """Progress bar on stderr of the main process."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._bar = tqdm(total=total, initial=done, disable=not shown, unit="step", dynamic_ncols=True, mininterval=1)

    def at(self, step: int) -> None:
        """So many steps are done; fewer than before after a rollback."""
        self._bar.update(step - self._bar.n)

    def show(self, line: dict) -> None:
        names = ("loss_d", "loss_g", "logit_real", "logit_fake")
        shown = {name: f"{line[name]:.2f}" for name in names if name in line}
        self._bar.set_postfix(shown | {"images/s": f"{line['images_per_second']:.1f}"})

    def say(self, message: str) -> None:
        if not self._bar.disable:
            self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

"""What a run folder says of itself; nothing that is missing or damaged ends the report, all of it is said."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.run_scores.reading import Evaluation, read_evaluations
from toolkit.command_line import parse
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.errors import UserError
from toolkit.run_folder import plots
from toolkit.run_folder.best import BEST
from toolkit.run_folder.checkpoint import STATE, checkpoints
from toolkit.run_folder.records import EVENTS_NAME, LOG_NAME, read_events, read_log

CONFIG = "config.yaml"
EVENT_NAME = re.compile(r"[\w .-]{1,40}")


@dataclass
class RunRecord:
    """A run as it lies on disk."""

    folder: Path
    config: ResolvedConfig | None
    lines: list[dict]
    """training_log.json, its numbers only; those that a rollback took back too."""
    events: list[dict]
    """step, level, name, text, time, each of its type."""
    evaluations: list[Evaluation]
    state: dict
    """state.json of the newest checkpoint that has a readable one."""
    best: tuple[str, float, float] | None
    """(metric, step, value) of the best checkpoint, as best.json has it."""
    damaged: list[str] = field(default_factory=list)
    """'file: what is wrong with it'."""

    @property
    def kept(self) -> list[dict]:
        """The log lines of the history that stands."""
        return plots.split_attempts(self.lines)[0]

    @property
    def step(self) -> int | None:
        """The last one that anything on disk tells of."""
        steps = [line["step"] for line in self.lines[-1:]] + [self.state.get("step", 0)]
        return max(steps) if self.lines or self.state else None

    @property
    def seconds(self) -> float | None:
        """Training time as the log's rates give it, without pauses between starts and what rollbacks took back."""
        total, seen = 0.0, 0.0
        for line in self.kept:
            images, rate = line.get("images_seen"), line.get("images_per_second")
            if images is not None and rate:
                total, seen = total + max(0.0, images - seen) / rate, images
        return total or None

    @property
    def rollbacks(self) -> list[dict]:
        return [event for event in self.events if event["name"] == "rollback"]


def read_run(folder: Path) -> RunRecord:
    """Raises UserError if it is no run folder at all."""
    if not (folder / CONFIG).is_file() and not (folder / LOG_NAME).is_file():
        known = "a run folder holds config.yaml and training_log.json, as --out_dir of toolkit/train.py does"
        raise UserError(f"{folder} {'is no run folder' if folder.is_dir() else 'does not exist'}; {known}")
    evaluations, spoilt = read_evaluations(folder)
    damaged = [f"evaluations/{line}" for line in spoilt]
    config = None
    try:
        config = read_config(folder)
    except UserError as error:
        damaged.append(f"{CONFIG}: {error}")
    lines = _lines(folder / LOG_NAME, read_log, damaged)
    events = _lines(folder / EVENTS_NAME, read_events, damaged)
    return RunRecord(
        folder=folder,
        config=config,
        lines=[line for line in map(_numbers, lines) if "step" in line],
        events=[_event(event) for event in events],
        evaluations=evaluations,
        state=newest_state(folder),
        best=_best(folder, damaged),
        damaged=damaged,
    )


def read_config(folder: Path) -> ResolvedConfig:
    """RUN/config.yaml. Raises UserError if it cannot be read."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder / CONFIG} is missing; it is written when a training starts")
    return parse(TrainConfig, ["--config", str(folder / CONFIG)]).resolved()


def _lines(path: Path, read, damaged: list[str]) -> list[dict]:
    try:
        return read(path.parent)
    except (OSError, ValueError, RecursionError) as error:
        damaged.append(f"{path.name}: {' '.join(str(error).split())[:200]}")
        return []


def _numbers(line: dict) -> dict:
    numbers = {name: value for name, value in line.items() if value is None or _is_number(value)}
    return numbers if numbers.get("attempt", 0) is not None else numbers | {"attempt": 0}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _event(event: dict) -> dict:
    name, level = str(event.get("name")), str(event.get("level"))
    told = {key: str(event.get(key) or "")[:10_000] for key in ("text", "time")}
    plain = name if EVENT_NAME.fullmatch(name) else "event"  # matplotlib would typeset what stands between dollars
    return {"step": int(event["step"]), "level": level, "name": plain, **told}


def newest_state(folder: Path) -> dict:
    """state.json of the newest checkpoint that has a readable one; {} without any."""
    for checkpoint in reversed(checkpoints(folder)):
        try:
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            if isinstance(state.get("step"), int):
                return state
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
    return {}


def _best(folder: Path, damaged: list[str]) -> tuple[str, float, float] | None:
    path = folder / BEST
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        metric, step, value = str(about["metric"])[:40], about["step"], about["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        damaged.append(f"{BEST}: {' '.join(str(error).split())[:200]}")
        return None
    return (metric, step, value) if _is_number(step) and _is_number(value) else None

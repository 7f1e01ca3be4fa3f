"""RUN/evaluations/*.json, checked field by field: a damaged file is named, never half believed."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from evaluation.run_scores.score_names import parse

FOLDER = "evaluations"
LARGEST = 2**27
"""Bytes of a file that is read; 100,000 prompts take some 20 MB."""
NEAREST_SHOWN = 32
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True)
class Prompt:
    """What the images of one caption scored; None where it was not measured."""

    caption: str
    count: int
    clip_score: float | None
    rank: float | None
    diversity: float | None


@dataclass(frozen=True)
class Pair:
    """A sample and the training image that is nearest to it."""

    sample: int
    caption: str
    training: int
    training_caption: str
    distance: float


@dataclass(frozen=True)
class Evaluation:
    """One file. `scores` holds finite numbers only; the names of the others stand in `missing`."""

    path: Path
    step: int | None
    scores: dict[str, float]
    missing: list[str]
    protocol: dict
    notes: list[str] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    nearest: list[Pair] = field(default_factory=list)
    nearest_image: Path | None = None


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """(those of a run folder in the order of their steps, 'file: what is wrong' of those that cannot be read).

    One without a step (its images came from no checkpoint of a known step) comes before all others; of equal steps
    the file's name decides.
    """
    found, damaged = [], []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            found.append(_read(path))
        except OSError as error:
            damaged.append(f"{path.name}: {error.strerror}")
        except (ValueError, OverflowError, RecursionError) as error:
            damaged.append(f"{path.name}: {' '.join(str(error).split())[:200]}")
    return sorted(found, key=lambda one: (-1 if one.step is None else one.step, one.path.name)), damaged


def best_by(name: str, evaluations: list[Evaluation]) -> Evaluation | None:
    """The one with the best score of that name, the last of equals; None if none has it."""
    holding = [one for one in reversed(evaluations) if name in one.scores]
    sign = 1 if parse(name).lower_is_better else -1
    return min(holding, key=lambda one: sign * one.scores[name], default=None)


def _read(path: Path) -> Evaluation:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"larger than {LARGEST // 2**20} MiB; that is no evaluation")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
        raise ValueError("no object with 'scores'")
    scores, protocol = content["scores"], content.get("protocol") or {}
    for name, value in scores.items():
        if not NAME.fullmatch(name) or not (value is None or _is_number(value)):
            raise ValueError(f"the score {name[:80]!r} is {str(value)[:80]!r}, no number")
    if not isinstance(protocol, dict):
        raise ValueError("'protocol' is no object")
    finite = {name: float(value) for name, value in scores.items() if value is not None and math.isfinite(value)}
    return Evaluation(
        path=path,
        step=_step(protocol.get("step", content.get("step")), path, str(protocol.get("checkpoint"))),
        scores=finite,
        missing=[name for name in scores if name not in finite],
        protocol=protocol,
        notes=[str(note) for note in _rows(content, "notes")],
        prompts=[_prompt(row) for row in _rows(content, "prompts")],
        nearest=[_pair(row) for row in _rows(content, "nearest")[:NEAREST_SHOWN]],
        nearest_image=_beside(path, content.get("nearest_image", content.get("nearest_picture"))),  # its former name
    )


def _step(step: object, path: Path, checkpoint: str) -> int | None:
    """As the report says it, else by its file's name, else by that of the checkpoint's folder."""
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return step
    named = re.fullmatch(r"step_(\d{1,15})", path.stem) or re.search(r"ckpt_(\d{1,15})(?!.*ckpt_)", checkpoint)
    return int(named[1]) if named else None


def _rows(content: dict, name: str) -> list:
    rows = content.get(name)
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise ValueError(f"{name!r} is no list")
    return rows


def _prompt(row: object) -> Prompt:
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str):
        raise ValueError("a row of 'prompts' has no caption")
    numbers = (_number(row, name) for name in ("clip_score", "rank", "diversity"))
    return Prompt(row["caption"], int(_number(row, "count") or 0), *numbers)


def _pair(row: object) -> Pair:
    needed = ("sample", "training", "distance")
    if not isinstance(row, dict) or any(_number(row, name) is None for name in needed):
        raise ValueError(f"a row of 'nearest' lacks one of {', '.join(needed)}")
    captions = (str(row.get(name) or "") for name in ("caption", "training_caption"))
    caption, training_caption = captions
    return Pair(int(row["sample"]), caption, int(row["training"]), training_caption, float(row["distance"]))


def _number(row: dict, name: str) -> float | None:
    value = row.get(name)
    return value if _is_number(value) and math.isfinite(value) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _beside(path: Path, name: object) -> Path | None:
    """Only a file of the same folder: a report must show no other image of the reader's disk."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        return None
    image = path.with_name(name)
    return image if image.is_file() and not image.is_symlink() else None

"""RUN/evaluations/step_0001000.json: what each evaluation during training found, and the images beside it."""

import contextlib
import functools
import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from toolkit.durable import write_whole

FOLDER = "evaluations"
NAME = re.compile(r"\.?step_(\d{7,15})(_nearest\.png|\.json)(\.tmp)?")
"""What a training writes there; whatever else is there stays as it is."""
UNCERTAINTY = re.compile(r"_(std|low|high|error)(_|$)")
"""In the name of a score that says how sure another one is."""


class Evaluated(NamedTuple):
    step: int
    images_seen: int
    scores: dict[str, float]
    """Finite ones."""


class Evaluations:
    """Those of a training in the order of its steps. The main process alone makes one."""

    def __init__(self, run: Path, step: int) -> None:
        """Goes on from `step`: what an earlier life of the run found after it is removed, as from its log."""
        self.folder, self._scores = run / FOLDER, {}
        self.forget_after(step)
        self._scores = {one.step: one.scores for one in read_evaluations(run)}

    def forget_after(self, step: int) -> None:
        """Remove those of later steps: the run has gone back and will come there anew."""
        for path in self.folder.glob("*step_*"):
            found = NAME.fullmatch(path.name)
            if found and (int(found[1]) > step or found[3]):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._scores = {at: scores for at, scores in self._scores.items() if at <= step}

    def tried(self, step: int) -> bool:
        return step in self._scores

    def scores(self, step: int) -> dict[str, float]:
        """Finite scores at a step; none if it was not evaluated, or in vain."""
        return self._scores.get(step, {})

    def give_up(self, step: int) -> None:
        """The evaluation at this step has failed; the next life of the run may try again."""
        self._scores[step] = {}

    def add(self, step: int, images_seen: int, report: dict) -> Path | None:
        """Write down the report of evaluation.during_training. Returns the path of its images, if it has any.

        Raises OSError where the disk is full; the scores are known all the same.
        """
        self._scores[step] = _finite(report["scores"])
        name = f"step_{step:07d}"
        content = {"step": step, "images_seen": images_seen} | report
        image, images = None, content.pop("images", None)
        self.folder.mkdir(exist_ok=True)
        if images is not None:
            image, png = self.folder / f"{name}_nearest.png", io.BytesIO()
            images.save(png, format="png")
            write_whole(image, png.getvalue())
            content["nearest_image"] = image.name
        text = json.dumps(_null_where_not_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(self.folder / f"{name}.json", (text + "\n").encode())
        return image


def read_evaluations(run: Path) -> list[Evaluated]:
    """Those of a run's training in the order of their steps; a damaged file is passed over."""
    found = []
    for path in (run / FOLDER).glob("step_*.json"):
        if match := NAME.fullmatch(path.name):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                about = path.stat()
                found.append(_read(path, int(match[1]), about.st_mtime_ns, about.st_size))
    return sorted(found, key=lambda one: one.step)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, step: int, changed: int, size: int) -> Evaluated:
    """Each file once: the plots ask for all of them again and again."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Evaluated(step, int(content["images_seen"]), _finite(content["scores"]))


def _finite(scores: dict) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if _is_finite(value)}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _null_where_not_finite(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _null_where_not_finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_null_where_not_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What a build has to do, written down before it begins: a killed one goes on by it, and several processes agree."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from shards.building.staged_file import staged_file
from shards.caption_folder.samples import Sample
from shards.problems import Problem
from toolkit.errors import UserError

PLAN_NAME = "plan.jsonl"


@dataclass(frozen=True)
class Outline:
    """The first line of a plan."""

    settings: dict
    """The options that shape the content."""
    first_part: int
    """Number of the first shard to build: those before stand in the folder that is added to."""
    first_number: int
    """Number of the first sample, likewise."""
    per_part: int
    """Samples of a part, before any is left out or becomes several crops."""
    samples: int
    problems: list[Problem]
    """What the captions' side left out."""
    crops: int = 1
    """How many samples of the shards each may become."""


class Plan:
    """The samples to build, in parts of `per_part`; each part becomes a shard. Holds no sample in memory."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file is damaged, OSError if it cannot be read."""
        self._path, self._starts = path, []
        with path.open("rb") as file:
            try:
                first = json.loads(file.readline())
                self.outline = Outline(**{**first, "problems": [Problem(*problem) for problem in first["problems"]]})
            except (ValueError, KeyError, TypeError):
                raise self._damaged() from None
            for i in range(self.outline.samples):
                if i % self.outline.per_part == 0:
                    self._starts.append(file.tell())
                if not file.readline().endswith(b"\n"):
                    raise self._damaged()

    @property
    def parts(self) -> range:
        """The parts' numbers, which are their shards'."""
        return range(self.outline.first_part, self.outline.first_part + len(self._starts))

    def samples(self, part: int) -> list[Sample]:
        with self._path.open("rb") as file:
            file.seek(self._starts[part - self.outline.first_part])
            try:
                return [sample for _, sample in zip(range(self.size(part)), _read(file), strict=False)]
            except (ValueError, TypeError):
                raise self._damaged() from None

    def first_number(self, part: int) -> int:
        """The number of a part's first sample."""
        before = (part - self.outline.first_part) * self.outline.per_part
        return self.outline.first_number + before * self.outline.crops

    def size(self, part: int) -> int:
        """How many samples a part has."""
        before = (part - self.outline.first_part) * self.outline.per_part
        return min(self.outline.per_part, self.outline.samples - before)

    def _damaged(self) -> UserError:
        return UserError(f"{self._path} is damaged; delete its folder and run again")


def publish(folder: Path, outline: Outline, samples: Iterable[Sample]) -> None:
    """Write the plan; of several processes the first one's counts."""
    with staged_file(folder / PLAN_NAME, first_counts=True) as file:
        for line in chain([asdict(outline)], ([s.key, s.image, s.captions] for s in samples)):
            file.write(json.dumps(line).encode() + b"\n")


def _read(file: IO[bytes]) -> Iterable[Sample]:
    for line in file:
        key, image, captions = json.loads(line)
        yield Sample(key, image, tuple(captions))

"""Which part of the work is this process's, where several of them, on one machine or many, do one job."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from toolkit.errors import UserError

Unit = TypeVar("Unit")


NUMBERS = (
    ("SLURM_ARRAY_TASK_COUNT", 1), ("SLURM_ARRAY_TASK_STEP", 1), ("SLURM_ARRAY_TASK_MIN", 0), ("WORLD_SIZE", 1),
)  # fmt: skip
"""Variables of the environment and what they are where they lack."""


@dataclass(frozen=True)
class Share:
    """Every `count`-th unit of work, from unit `index` on. The processes meet in the file system only."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """'2/4' -> the third of four; '' -> what the environment says. Raises UserError for anything else."""
        if not text:
            return cls.of_environment()
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        share = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not share.index < share.count:
            raise UserError(f"--share is {text!r}; it must be I/N with I from 0 to N-1, e.g. 0/4, 1/4, 2/4 and 3/4")
        return share

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Share":
        """Of `accelerate launch` or `torchrun` (RANK, WORLD_SIZE) and of a SLURM array, also of both together.

        SLURM_PROCID is not asked: it stands in the environment of a batch script too, whose other tasks never start.
        """
        tasks, step, first, world = (_number(environment, *of) for of in NUMBERS)
        task, rest = divmod(_number(environment, "SLURM_ARRAY_TASK_ID", first) - first, max(step, 1))
        rank = _number(environment, "RANK", 0)
        if rest or not 0 <= task < tasks or not 0 <= rank < world:
            raise UserError(
                f"the environment says task {task + 1} of {tasks} and process {rank + 1} of {world}, which cannot be "
                "shared by; pass --share I/N"
            )
        return cls(task * world + rank, tasks * world)

    def mine(self, units: Sequence[Unit]) -> Sequence[Unit]:
        return units[self.index :: self.count]


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment's {name} is {text!r}, which is no number; pass --share I/N")
    return int(text)

"""One decode and one forward of each network per image, shared out over the processes."""

import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.extractors.extractor import Extractor
from evaluation.sources.source import Source
from toolkit.errors import UserError
from toolkit.launching.processes import Processes

Features = dict[str, Tensor]
"""By tap: float32 [N, C] on the CPU, in the order of the images."""


class OutOfTime(UserError):
    """The features were not there in the time allowed."""


def collect(
    source: Source, extractors: list[Extractor], batch: int, processes: Processes, until: float | None = None
) -> Features:
    """Features of every image of `source` on the main process, empty on the others. All processes call it.

    Batches go to the processes in turn, so each image is computed once and in the same batch however many there are.
    `until`: a value of time.monotonic(); past it on any process, all raise OutOfTime together. Progress on stderr.
    """
    batches = [range(first, min(first + batch, source.count)) for first in range(0, source.count, batch)]
    mine = batches[processes.index :: processes.count]
    found: dict[str, list[Tensor]] = {tap: [] for extractor in extractors for tap in extractor.taps}
    images = source.stream(mine)

    def next_batch() -> None:
        drawn = next(images, None)  # in the last turn some have none left
        if drawn is None:
            return
        for extractor in extractors:
            for tap, values in extractor(drawn).items():
                found[tap].append(values)

    with tqdm(total=source.count, desc=Path(source.name).name, unit=" images", disable=not processes.main) as progress:
        for turn in range(0, len(batches), processes.count):
            if until is not None and processes.largest(int(time.monotonic() > until)):
                raise OutOfTime(f"time was up after {progress.n:,} of {source.count:,} images of {source.name}")
            processes.together(next_batch)
            progress.update(sum(len(numbers) for numbers in batches[turn : turn + processes.count]))
    return {tap: _in_order(parts, batches, processes) for tap, parts in found.items()}


def _in_order(parts: list[Tensor], batches: list[range], processes: Processes) -> Tensor:
    """From each process's batches, one after the other, to all images in order; [0, 0] on the other processes."""
    gathered = processes.gather(torch.cat(parts) if parts else torch.empty(0, 0))
    if not gathered:
        return torch.empty(0, 0)
    if len(gathered) == 1:
        return gathered[0]
    split = [
        rows.split([len(numbers) for numbers in batches[index :: processes.count]])
        for index, rows in enumerate(gathered)
    ]
    return torch.cat([split[i % processes.count][i // processes.count] for i in range(len(batches))])

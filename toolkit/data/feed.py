"""One process's pictures of the coming step, fetched ahead and on its device."""

from collections.abc import Iterator

import torch

from toolkit.data.dataset import Batch, ShardDataset, batches


class Feed:
    """Loading starts at the first `fetch` after the start or a `close`, at the position given then."""

    def __init__(self, dataset: ShardDataset, batch: int, workers: int, device: torch.device) -> None:
        self.dataset, self.batch, self.workers, self.device = dataset, batch, workers, device
        self._stream: Iterator[list[Batch]] | None = None
        self._ready: list[list[Batch]] = []

    def fetch(self, position: int, share: slice, parts: int, count: int) -> None:
        """Have `count` global batches ready, each as `parts` micro-batches of `share`. May be interrupted anywhere."""
        if self._stream is None:
            pin = self.device.type == "cuda"
            self._stream = batches(self.dataset, position, self.batch, share, parts, self.workers, pin)
        while len(self._ready) < count:
            self._ready.append([batch.to(self.device) for batch in next(self._stream)])

    def take(self) -> list[list[Batch]]:
        """What is ready, in order."""
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Stop the data workers and forget what they have read ahead."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._ready = None, []

"""Are the images of a tar sound? Each is decoded in full, in processes beside the encoder."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

from shards.worker_processes import end_with, killed
from toolkit.data.decoding import BadImage, decode_pixels
from toolkit.durable import file_sha256

CHUNK = 64
"""Images that a process takes at a time."""


class ImageChecks:
    """`workers` processes, or none for 1: then the work is done where its result is asked for. A context manager."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU state of the encoder
        self._pool = ProcessPoolExecutor(workers, context, _enter, (os.getpid(),)) if workers > 1 else None

    def __enter__(self) -> "ImageChecks":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def sha256(self, path: Path) -> Callable[[], str]:
        return self._start(file_sha256, path)

    def reasons(self, path: Path, spans: list[tuple[int, int]], min_side: int) -> Callable[[], list[str]]:
        """For each image '' or why it is left out."""
        chunks = [spans[start : start + CHUNK] for start in range(0, len(spans), CHUNK)]
        results = [self._start(check_images, path, chunk, min_side) for chunk in chunks]
        return lambda: [reason for result in results for reason in result()]

    def _start(self, work: Callable, *arguments: object) -> Callable:
        if not self._pool:
            return lambda: work(*arguments)
        try:
            future = self._pool.submit(work, *arguments)
        except BrokenProcessPool:
            raise killed() from None
        return lambda: _result(future)


def check_images(path: Path, spans: list[tuple[int, int]], min_side: int) -> list[str]:
    """For each image of the tar '' or the reason why it cannot be used."""
    with path.open("rb") as file:
        return [_reason(os.pread(file.fileno(), size, offset), min_side) for offset, size in spans]


def _reason(data: bytes, min_side: int) -> str:
    try:
        height, width, _ = decode_pixels(data).shape
    except BadImage as error:
        return f"bad image: {' '.join(str(error).split())}"
    if min(width, height) < min_side:
        return f"too small: {width}x{height} px, the short side must have --min_side {min_side}"
    return ""


def _result(future) -> object:
    try:
        return future.result()
    except BrokenProcessPool:
        raise killed() from None


def _enter(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent alone decides
    end_with(parent)

"""Image files -> batches, by threads that decode the next batches while the caller works on this one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.decoding import BadImage, decode_pixels, fit_square
from toolkit.data.worker_count import cores

AHEAD = 2
"""Batches that are decoded in advance."""
MOST_THREADS = 8


def square_pixels(data: bytes, side: int, fit: str = "crop") -> np.ndarray:
    """Bytes of an image file -> uint8 [side, side, 3], resized by `fit_square` where needed. Raises BadImage."""
    pixels = decode_pixels(data)
    if pixels.shape == (side, side, 3):
        return pixels
    return np.asarray(fit_square(Image.fromarray(pixels), side, fit))


def decoded(
    pixels: Callable[[int], np.ndarray], width: int, height: int
) -> Callable[[Iterable[range]], Iterator[Tensor]]:
    """`pixels` (number -> uint8 [H, W, 3]) -> a Source's `stream`: decoders work outside the interpreter lock."""
    threads = min(MOST_THREADS, cores())

    def fill(out: np.ndarray, numbers: range) -> None:
        for row, number in zip(out, numbers, strict=True):
            row[:] = pixels(number).transpose(2, 0, 1)

    def start(pool: ThreadPoolExecutor, numbers: range) -> tuple[np.ndarray, list[Future]]:
        out = np.empty((len(numbers), 3, height, width), dtype=np.uint8)
        edges = [len(numbers) * k // threads for k in range(threads + 1)]
        parts = [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]
        return out, [pool.submit(fill, out[part], numbers[part]) for part in parts]

    def finish(out: np.ndarray, parts: list[Future]) -> Tensor:
        for part in parts:
            part.result()
        return torch.from_numpy(out)

    def stream(chunks: Iterable[range]) -> Iterator[Tensor]:
        started: deque = deque()
        with ThreadPoolExecutor(threads) as pool:
            for numbers in chunks:
                started.append(start(pool, numbers))
                if len(started) > AHEAD:
                    yield finish(*started.popleft())
            while started:
                yield finish(*started.popleft())

    return stream


def named(name: object, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """`decode()`, with `name` in front of any complaint, a read error's too. Raises BadImage."""
    try:
        return decode()
    except OSError as error:
        raise BadImage(f"{name}: cannot be read ({error.strerror})") from None
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None

"""Images that look alike: a 64-bit perceptual hash, and groups of close hashes without comparing all with all."""

from typing import NamedTuple

import numpy as np
from PIL import Image

BITS, SIDE, FREQUENCIES = 64, 32, 8
COLOUR_TOLERANCE = 12
"""Levels of 255: the hash sees grey only, and a red and a blue disc of one shape are no duplicates."""
WINDOW = 2000
"""Most neighbours in one bucket that an image is compared with; makes the work linear in the number of images."""
MAX_PAIRS = 5_000_000

_angles = np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None]
_DCT = np.cos(_angles) * np.sqrt(2 / SIDE)
_DCT[0] /= np.sqrt(2)


class Look(NamedTuple):
    """What is kept of an image: its hash (64 bits) and mean colour as 0xRRGGBB."""

    hash: int
    colour: int


class Groups(NamedTuple):
    """`members`: positions of similar images, ascending, the largest group first. `complete`: none was missed."""

    members: list[list[int]]
    complete: bool


def look_of(image: Image.Image) -> Look:
    """RGB image of any size -> its DCT hash and mean colour.

    The lowest 8x8 frequencies of the image in grey at 32x32 px, one bit each: above their median or not
    ("pHash": C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1; with
    the lowest row and column of frequencies, which hold the most). Coefficients are rounded to whole levels, so that
    the noise of an even image is no pattern.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    waves = (_DCT @ grey @ _DCT.T).round().ravel()
    bits = np.packbits(waves > np.median(waves))
    red, green, blue = image.resize((1, 1), Image.Resampling.BOX).tobytes()
    return Look(int.from_bytes(bits.tobytes(), "big"), red << 16 | green << 8 | blue)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of different bits of uint64 arrays, elementwise."""
    return np.bitwise_count(a ^ b)


def close_pairs(hashes: np.ndarray, bits: int, window: int = WINDOW) -> tuple[np.ndarray, bool]:
    """uint64 [N] -> int64 [P, 2], the pairs (i < j) at most `bits` apart, sorted; and whether these are all of them.

    The 64 bits are cut into bits+1 bands: hashes that differ in at most `bits` bits are equal in one band at least, so
    only those equal in a band are compared (N. Manku et al., Detecting Near-Duplicates for Web Crawling, 2007,
    section 3, with one band at a time). A bucket of over `window` hashes is sorted, and each compared with the next
    `window` only; then, or past MAX_PAIRS, the answer is not complete.
    """
    edges = [BITS * band // (bits + 1) for band in range(bits + 2)]
    found, total, complete = [np.empty((0, 2), dtype=np.int64)], 0, True
    for low, high in zip(edges, edges[1:], strict=False):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, band))
        keys, sorted_hashes = band[order], hashes[order]
        active = np.arange(len(order))
        for shift in range(1, len(order)):
            active = active[active + shift < len(order)]
            active = active[keys[active] == keys[active + shift]]
            if not len(active):
                break
            if shift > window or total > MAX_PAIRS:
                complete = False
                break
            near = active[distance(sorted_hashes[active], sorted_hashes[active + shift]) <= bits]
            if len(near):
                found.append(np.sort(np.stack([order[near], order[near + shift]], axis=1), axis=1))
                total += len(near)
    return np.unique(np.concatenate(found), axis=0), complete


def group(looks: np.ndarray, bits: int) -> Groups:
    """uint64 [N, 2] (hash, colour as of Look) -> groups of two images or more.

    Every member is within `bits` bits and COLOUR_TOLERANCE levels of the group's first image; being similar to a
    member is not enough, or chains of small steps would join what is not alike.
    """
    if not len(looks):
        return Groups([], True)
    # Equal looks are one: thousands of copies of an image would otherwise be compared with each other.
    kinds, first, kind_of = np.unique(looks, axis=0, return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    rank = np.argsort(by_first)
    pairs, complete = close_pairs(kinds[by_first, 0], bits)
    colours = kinds[by_first, 1]
    pairs = pairs[_colour_difference(colours[pairs[:, 0]], colours[pairs[:, 1]]) <= COLOUR_TOLERANCE]
    leader = np.arange(len(kinds))
    for i, j in pairs.tolist():  # sorted by i: whether i leads is settled before its pairs come
        if leader[i] == i and leader[j] == j:
            leader[j] = i
    return Groups(_gather(leader[rank[kind_of.ravel()]]), complete)


def _gather(labels: np.ndarray) -> list[list[int]]:
    """Positions of equal labels, where there are two or more; the largest first, then by first position."""
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [part.tolist() for part in np.split(order, cuts) if len(part) > 1]
    return sorted(groups, key=lambda members: (-len(members), members[0]))


def _colour_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest difference of the three channels of 0xRRGGBB."""
    shifts = np.array([16, 8, 0], dtype=np.uint64)[:, None]
    channels = [((colour >> shifts) & np.uint64(255)).astype(np.int64) for colour in (a, b)]
    return np.abs(channels[0] - channels[1]).max(axis=0)

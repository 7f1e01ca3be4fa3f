"""Two images of one caption side by side, as an order of an epoch.

Minibatch deviation over such twos shows D a G that draws one layout a caption. Over any images it mixes captions, and
such a G looks as varied as the dataset.
"""

import contextlib
import hashlib

import numpy as np

from toolkit import draws
from toolkit.data.shard_reader import DamagedSample, ShardSet


def caption_groups(shards: ShardSet) -> np.ndarray:
    """int64 [N]: equal for samples with the same captions. Reads all captions once, not the images.

    A damaged sample is alone in its group: its own turn names it.
    """
    groups = -np.arange(1, len(shards) + 1)
    for number in range(len(shards)):
        with contextlib.suppress(DamagedSample):
            text = "\n".join(sorted(shards.read_captions(number)))
            groups[number] = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
    return groups


def in_pairs(order: np.ndarray, groups: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation [N] of sample numbers, rearranged: pairs of one group, whose order is drawn anew.

    Pairs are those that `order` brings together, new ones in each epoch. What is left over in the groups is paired at
    random. With an odd N one sample is alone: it stands at the end of even epochs and at the start of odd ones, so that
    pairs begin at even positions counted over all epochs.
    """
    by_group = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=groups[by_group[0]] - 1))
    sizes = np.diff(starts, append=len(order))
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    paired = place < np.repeat(sizes // 2 * 2, sizes)
    single = by_group[~paired]
    single = single[draws.permutation(len(single), seed, epoch, "single").numpy()]
    alone = single[len(single) // 2 * 2 :]
    pairs = np.concatenate([by_group[paired].reshape(-1, 2), single[: len(single) // 2 * 2].reshape(-1, 2)])
    pairs = pairs[draws.permutation(len(pairs), seed, epoch, "pairs").numpy()].reshape(-1)
    return np.concatenate([alone, pairs] if epoch % 2 else [pairs, alone])

"""Width and height of the images that the stored ones were made from: `KEY.json`, which the index does not list."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from toolkit.data.shard_format import Manifest

BLOCK = 512
MAX_SPAN = 2**26
"""Bytes between two samples' members; more is no sample of ours."""


class SourceSizes:
    """(width, height) of the source of sample i, by the stretch of the tar where its members stand."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.paths = [folder / shard.name for shard in manifest.shards]
        self.columns = (1, 3) if manifest.vectors else (1, 3, 5)  # those of members of the tar
        self.index = np.load(folder / manifest.index_name, mmap_mode="r", allow_pickle=False)

    def of(self, i: int) -> tuple[int, int] | None:
        """None if it is not recorded, or is no size."""
        shard = int(self.index[i, 0])
        start = self._end(i - 1) if i and self.index[i - 1, 0] == shard else 0
        last = i + 1 == len(self.index) or self.index[i + 1, 0] != shard
        end = self._end(i) + 4 * BLOCK if last else int(self.index[i + 1, list(self.columns)].min()) - BLOCK
        if not 0 < end - start <= MAX_SPAN:
            return None
        with self.paths[shard].open("rb") as file:
            file.seek(start)
            return _find_size(file.read(end - start), int(self.index[i, 3]) - start)

    def _end(self, i: int) -> int:
        """Where the last indexed member of a sample ends, padding included."""
        row = self.index[i]
        return max(int(row[k]) + -(-int(row[k + 1]) // BLOCK) * BLOCK for k in self.columns)


def _find_size(span: bytes, caption_offset: int) -> tuple[int, int] | None:
    """The size in the `.json` that has the name of the caption at `caption_offset`; other samples' may stand near."""
    key, contents = None, dict[str, bytes]()
    try:
        with tarfile.open(fileobj=io.BytesIO(span + bytes(2 * BLOCK)), mode="r:") as tar:
            for member in tar:
                name, _, suffix = Path(member.name).name.partition(".")
                if member.offset_data == caption_offset:
                    key = name
                elif suffix == "json" and member.isreg():
                    file = tar.extractfile(member)
                    assert file is not None  # it is a regular one
                    contents[name] = file.read()
    except tarfile.TarError:
        pass  # the stretch may end within the next sample's header; what stood before it is read
    if key is None:
        return None
    try:
        fields = json.loads(contents[key])
        width, height = fields["width"], fields["height"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    sane = all(type(side) is int and 0 < side < 10**6 for side in (width, height))
    return (width, height) if sane else None

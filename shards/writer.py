"""Writes the tars of a shard folder, with the same bytes for the same samples, their index and the report."""

import json
from pathlib import Path

import numpy as np
import webdataset

from toolkit.data.shard_format import INDEX_NAME, ShardFile, file_sha256, index_tar

REPORT_NAME, PAGE_NAME = "report.json", "report.html"


class ShardWriter:
    """Samples -> numbered tars of `samples_per_shard` in `folder`."""

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        self.folder, self.samples_per_shard, self.samples = folder, samples_per_shard, 0
        self.paths: list[Path] = []

    def add(self, members: dict[str, bytes]) -> None:
        """`members`: suffix -> content. The key is the sample's number, for a dot in a name would split the sample."""
        if self.samples % self.samples_per_shard == 0:
            self.close()
            self.paths.append(self.folder / f"shard-{len(self.paths):05d}.tar")
            self._file = self.paths[-1].open("xb")
            # Bytes only (no encoder, which may pickle); no time and no user, so that equal samples give equal tars.
            self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0, user="", group="")
        self._tar.write({"__key__": f"{self.samples:09d}", **members})
        self.samples += 1

    def close(self) -> None:
        if self.paths and not self._file.closed:
            self._tar.close()
            self._file.close()

    def index(self) -> tuple[ShardFile, ...]:
        """Re-read every tar, write the index and return what the manifest says about the shards."""
        self.close()
        rows = [index_tar(path, number) for number, path in enumerate(self.paths)]
        with (self.folder / INDEX_NAME).open("xb") as file:
            np.save(file, np.concatenate(rows))
        return tuple(
            ShardFile(path.name, len(found), path.stat().st_size, file_sha256(path))
            for path, found in zip(self.paths, rows, strict=True)
        )


def write_report(folder: Path, written: int, skipped: list[tuple[str, str]]) -> None:
    """`report.json`: how many samples were written, and each file left out with its reason."""
    content = {"written": written, "skipped": [{"path": path, "reason": reason} for path, reason in skipped]}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with (folder / REPORT_NAME).open("x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)

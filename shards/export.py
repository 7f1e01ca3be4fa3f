"""A shard folder -> Hugging Face's imagefolder: `python -m shards.export DIR --out OUT`.

(https://huggingface.co/docs/datasets/image_dataset#imagefolder)
"""

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from shards.problems import Problem, print_problems, summary
from shards.staged_folder import staged_folder
from toolkit.command_line import data_first, run
from toolkit.data.dataset import read_decoded
from toolkit.data.images import save_png
from toolkit.data.npy import MAGIC
from toolkit.data.shard_reader import DamagedSample, Sample, ShardSet
from toolkit.data.tar_index import list_tar
from toolkit.errors import UserError

PER_FOLDER = 1000
"""Images in one folder: file browsers and network disks dislike more."""
SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}


@dataclass(frozen=True)
class ExportOptions:
    """Write images and captions of a shard folder as files, which Hugging Face datasets and shards.create read."""

    data: Path
    """The shard folder; may also stand first without its flag."""
    out: Path
    """The folder to make: OUT/000/000000000.jpg and metadata.jsonl; appears only when it is complete."""
    fitted: bool = False
    """Images as training sees them, as PNG; default false: stored files byte for byte, only raw ones as PNG."""


def main(options: ExportOptions) -> None:
    shard_set, problems, written = ShardSet(options.data), [], 0
    with staged_folder(options.out) as folder:
        with (folder / "metadata.jsonl").open("x", encoding="utf-8") as metadata:
            for number, key in enumerate(tqdm(_keys(shard_set), total=len(shard_set), disable=None)):
                try:
                    name, sample = _export(shard_set, number, folder, options.fitted)
                except DamagedSample as error:
                    problems.append(Problem(key, str(error)))
                    continue
                row = {"file_name": name, "text": sample.captions[0], "captions": sample.captions, "key": key}
                metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += 1
        if not written:
            raise UserError(f"no sample of {options.data} can be read ({problems[0].reason}); build the shards again")
    print_problems(problems)
    print(f"wrote {written:,} images with captions to {options.out}; {summary(problems)}")


def _export(shard_set: ShardSet, number: int, folder: Path, fitted: bool) -> tuple[str, Sample]:
    """The image's name in `folder`, where it is written, and its sample. Raises DamagedSample."""
    sample, image = read_decoded(shard_set, number)  # in full: a damaged file must not be handed on
    part = f"{number // PER_FOLDER:03d}"
    (folder / part).mkdir(exist_ok=True)
    if fitted or sample.image.startswith(MAGIC):
        name = f"{part}/{number:09d}.png"
        save_png(image, folder / name)
    else:
        name = f"{part}/{number:09d}.{SUFFIXES[sample.image[:2]]}"
        (folder / name).write_bytes(sample.image)
    return name, sample


def _keys(shard_set: ShardSet) -> Iterator[str]:
    """Per sample 'TAR/KEY', where it stands. Raises UserError if a tar is damaged."""
    start = 0
    for number, shard in enumerate(shard_set.manifest.shards):
        keys, rows = list_tar(shard_set.folder / shard.name, number)
        at = dict(zip(rows[:, 1].tolist(), keys, strict=True))
        for offset in shard_set.index[start : start + shard.samples, 1].tolist():
            yield f"{shard.name}/{at.get(offset, '?')}"
        start += shard.samples


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `kill` too removes the staging folder
    run(main, ExportOptions, data_first(sys.argv[1:]))

"""Builds for tests: in this process where that is enough, as commands where processes are the point."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from shards import create
from shards.create import CreateOptions
from tests.conftest import REPOSITORY
from tests.forking import Forked
from toolkit.data.shard_reader import ShardSet

LATTICE = 6


def build(folder: Path, out: Path, **options) -> ShardSet:
    """shards.create in this process, with one worker and 5 samples a shard where not said otherwise."""
    run(folder, out, **options)
    return ShardSet(out)


def run(folder: Path, out: Path, **options) -> None:
    """`build` where there may be nothing to read yet."""
    if "embeddings" not in options:
        options.setdefault("encoder", "hashing")
    defaults = {"input": folder, "out": out, "size": 16, "samples_per_shard": 5, "workers": 1}
    create.main(CreateOptions(**defaults | options))


def skipped(out: Path) -> dict[str, str]:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry["reason"] for entry in report["skipped"]}


def pattern(number: int, side: int = 48) -> Image.Image:
    """Soft random shapes, alike at any scale and unlike those of every other number."""
    grid = np.random.default_rng(number).integers(0, 256, (LATTICE, LATTICE, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)


def paint(folder: Path, numbers: Iterable[int]) -> Path:
    """NUMBER.png with NUMBER.txt beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pattern(number).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"image number {number}\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def beside(out: Path) -> list[str]:
    """What a build has left next to its folder."""
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}."))


def start(
    folder: Path, out: Path, *flags: str, new_python: bool = False, **environment: str
) -> subprocess.Popen | Forked:
    """The command as users start it, from another folder, with its own process group.

    `new_python`: not forked from a process that has torch already (tests/forking.py), where that is the point.
    """
    command = [str(REPOSITORY / "shards" / "create.py"), f"--input={folder}", f"--out={out}"]
    command += ["--size=16", "--encoder=hashing", "--samples_per_shard=5", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if not new_python:
        return Forked(command, folder, environment, stdout=True)
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

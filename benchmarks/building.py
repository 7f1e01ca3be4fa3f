"""Shards from many synthetic images: rate, memory, equal bytes for 1 and 2 workers, killed and resumed.

`python benchmarks/building.py --folder /tmp/building --count 100000` prints one JSON object. The folder keeps the
images for the next time.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.command_line import run
from toolkit.errors import check

WORDS = ("red", "old", "small", "round", "sweet", "green", "warm", "crisp", "plate", "bowl", "pie", "soup", "stew")


@dataclass(frozen=True)
class BuildingOptions:
    """Build shards from synthetic 160x128 px JPEG with a caption each, and measure."""

    folder: Path
    """Where images and shards are put; made if absent."""
    count: int = 100_000
    """Number of images, 1000 to 10000000; default 100000."""
    size: int = 128
    """Width and height of the stored images in pixels; default 128."""

    def __post_init__(self) -> None:
        check(1000 <= self.count <= 10**7, "--count", self.count, "from 1000 to 10000000")


def main(options: BuildingOptions) -> None:
    images = options.folder / f"images-{options.count}"
    if not (images / "captions.jsonl").is_file():
        draw(images, options.count)
    found = {"count": options.count, "size": options.size, "cores": os.cpu_count()}
    hashes = {}
    for workers in (1, 2):
        out = options.folder / f"workers-{workers}"
        found[f"workers_{workers}"] = build(images, out, options.size, workers)
        hashes[workers] = content_hash(out)
        shutil.rmtree(out)
    killed = options.folder / "killed"
    found["killed_and_resumed"] = kill_and_resume(images, killed, options.size, found["workers_2"]["seconds"])
    hashes["killed"] = content_hash(killed)
    shutil.rmtree(killed)
    found |= {"content_sha256": hashes[1], "equal_bytes": len(set(hashes.values())) == 1}
    print(json.dumps(found, indent=1))


def draw(images: Path, count: int) -> None:
    """Coloured clouds: as heavy to decode as a photo of that size, and drawn in a millisecond."""
    for folder in range(0, count, 1000):
        (images / f"{folder // 1000:05d}").mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        pool.starmap(_draw_one, ((images, i) for i in range(count)), chunksize=500)
    with (images / "captions.jsonl").open("w") as file:
        for i in range(count):
            words = [WORDS[i // len(WORDS) ** k % len(WORDS)] for k in range(4)]
            file.write(json.dumps({"file": _name(i), "caption": f"a {' '.join(words)}, number {i}"}) + "\n")


def build(images: Path, out: Path, size: int, workers: int) -> dict:
    """Seconds, samples/s, and the largest memory of any one process (main or worker)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(_command(images, out, size, workers), check=True, stdout=sys.stderr)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    samples = json.loads((out / "manifest.json").read_text())["samples"]
    return {
        "seconds": round(seconds, 1),
        "samples_per_s": round(samples / seconds),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "largest_process_mb": round(after.ru_maxrss / 1024),
    }


def kill_and_resume(images: Path, out: Path, size: int, whole: float) -> dict:
    """kill -9 at about 60 % of a build with two workers, then the same command again."""
    command = _command(images, out, size, 2)
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        time.sleep(0.6 * whole)
        process.send_signal(signal.SIGKILL)
    kept = len(list(out.with_name(f".{out.name}.building").glob("shard-*.json")))
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return {"shards_kept": kept, "seconds_to_finish": round(time.perf_counter() - start, 1)}


def content_hash(folder: Path) -> str:
    """SHA-256 over names and contents of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _command(images: Path, out: Path, size: int, workers: int) -> list[str]:
    flags = ["--input", images, "--out", out, "--size", size, "--encoder", "hashing", "--workers", workers]
    return [sys.executable, "-m", "shards.create", *map(str, flags)]


def _name(i: int) -> str:
    return f"{i // 1000:05d}/{i:08d}.jpg"


def _draw_one(images: Path, i: int) -> None:
    clouds = np.random.default_rng(i).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    Image.fromarray(clouds).resize((160, 128), Image.Resampling.BICUBIC).save(images / _name(i), quality=90)


if __name__ == "__main__":
    run(main, BuildingOptions)

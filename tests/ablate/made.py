"""A tiny grid, runs that nobody trained, and a runner that trains nothing."""

from pathlib import Path
from threading import Event

from benchmarks.ablate.grid import fingerprint
from benchmarks.ablate.results import Results
from benchmarks.ablate.training import Job

TEXT = """
data: shards
kimg: 0.128
seeds: [0, 1]
evaluate: {times: 2, count: 64, layer: 64, metrics: "fid,kid"}
base: {base_ch: 4, z_dim: 8, d_scales: 1, batch: 8, d_steps: 1}
variants:
  faster: {lr_g: 1e-3}
  base: {}
  large: {batch: 16, d_steps: 2, diffaug: "", compile: "no"}
control: base
"""


def write_grid(place: Path, old: str = "", new: str = "", name: str = "grid.yaml") -> Path:
    assert old in TEXT
    (place / name).write_text(TEXT.replace(old, new) if old else TEXT, encoding="utf-8")
    return place / name


class Fake:
    """A runner that trains nothing: 10 s of wall time each on its own clock, FIDs from `fids`."""

    def __init__(self, fids=None, fails=(), now=None) -> None:
        self.fids, self.fails, self.now, self.ran = fids or {}, fails, now or [0.0], []

    def __call__(self, job: Job, stop: Event) -> dict:
        self.ran.append((job.variant, job.seed))
        self.now[0] += 10
        name = (job.variant, job.seed)
        run = made(*name, self.fids.get(job.variant, 50.0) + job.seed, wall_seconds=10.0)
        run |= {"definition": fingerprint(job.definition), "options": job.definition["options"]}
        return run | ({"status": "failed", "reason": "diverged", "points": []} if name in self.fails else {})


def made(variant: str, seed: int, fid: float, score: str = "fid_64", **changes) -> dict:
    points = [
        {"step": i, "images_seen": 64 * i, "training_seconds": 2.0 * i, "scores": {score: fid * 2 / i, "kid_64": 0.1}}
        for i in (1, 2)
    ]
    return {
        "variant": variant, "seed": seed, "status": "finished", "reason": "", "definition": variant, "options": {},
        "images_seen": 128, "points": points, "seconds_per_kimg": 4.0, "clock": "wall", "wall_seconds": 10.0,
        "parameters": {"G": 2_500_000, "D": 1000}, "multiply_adds": {"G": 3e9, "D": 12}, "findings": {},
        "collapsed": False, "protocol": {}, "device": "GPU", "versions": {"torch": "2.11"},
    } | changes  # fmt: skip


def results_of(fids: dict[str, list[float]], control: str = "base") -> Results:
    grid = {"name": "g", "control": control, "criterion": "fid_64", "kimg": 0.128, "seeds": [0, 1, 2],
            "variants": list(fids), "data": "d", "samples": 72, "resolution": 16}  # fmt: skip
    return Results(grid, [made(name, seed, fid) for name, found in fids.items() for seed, fid in enumerate(found)])

"""What real images score against other real images: no variant can be expected to come lower."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.ablate.grid import Grid
from benchmarks.ablate.training import REPOSITORY
from toolkit.errors import UserError


def measure_floor(grid: Grid, out: Path) -> dict:
    """Of the grid's `test` against its `data`, `count` images each, by the engine of the evaluations."""
    file, evaluate = out / "floor.json", grid.evaluate
    out.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "evaluation", "--real", grid.data, "--fake", grid.test, "--count", str(evaluate.count),
        "--metrics", evaluate.metrics, "--feature_layer", evaluate.layer, "--out", str(file),
        "--device", "auto" if grid.on_gpu else "cpu",
    ]  # fmt: skip
    command += ["--weights", str(evaluate.weights)] if evaluate.weights else []
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment.setdefault("TEXT_GAN_CACHE", str(out.resolve() / "cache"))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"the floor could not be measured: {(ended.stderr.strip().splitlines() or ['?'])[-1]}")
    scores = json.loads(file.read_text(encoding="utf-8"))["scores"]
    file.unlink()
    return {"count": evaluate.count, "scores": {name: value for name, value in scores.items() if value is not None}}

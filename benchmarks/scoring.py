"""FID, KID and Inception Score of two folders at once, beside torch-fidelity on the same files and weights.

`python -m benchmarks.scoring --folder /tmp/scoring --photos DIR` prints one JSON object; from the repository's root. In
turns in one process, by CPU time, so that others on the machine do not count. It fails where the scores differ.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import scipy.linalg
import torch
import torch_fidelity
from PIL import Image

from evaluation.extractors.inception import load_inception
from evaluation.extractors.resize import network_input
from evaluation.metrics.frechet import Statistics, frechet_distance
from evaluation.metrics.frechet import statistics as gaussian
from evaluation.options import EvaluationOptions
from evaluation.scoring import evaluate
from tests.inception_files import drawn_pictures, write_random
from toolkit.command_line import run
from toolkit.data.decoding import SUFFIXES, fit_square
from toolkit.data.images import save_png
from toolkit.errors import UserError, check

SAME = 1e-3
"""Relative difference of a score above which the two did not compute the same."""
WIDTH = 2048
NAMES = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "inception_score": "inception_score_mean",
}


@dataclass(frozen=True)
class ScoringOptions:
    """Score two folders of pictures, and measure."""

    folder: Path
    """Where pictures, weights and the cache are put; made if absent."""
    photos: Path | None = None
    """Folder of pictures to take, cropped square (default: drawn clouds)."""
    weights: Path | None = None
    """A complete Inception weights file of torch-fidelity's form (default: random weights, as slow as any)."""
    count: int = 256
    """Pictures a side; at least 64."""
    size: int = 64
    """Their width and height in pixels."""
    rounds: int = 3
    """Times that each way is measured; medians are reported."""
    batch: int = 32
    """Pictures at a time, for ours; torch-fidelity has its default, 64."""
    threads: int = 1
    """Threads of PyTorch."""

    def __post_init__(self) -> None:
        check(self.count >= 64, "--count", self.count, "at least 64")
        check(self.rounds > 0, "--rounds", self.rounds, "at least 1")


def main(options: ScoringOptions) -> None:
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    weights = options.weights or write_random(options.folder / "random.pth")
    sides = put_pictures(options)
    print(
        json.dumps(
            {
                "pictures_a_side": options.count,
                "size": options.size,
                "threads": options.threads,
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "whole": compare_whole(options, sides, weights),
                "extractor": compare_extractors(options, weights),
                "frechet_term": {f"{count}_pictures": compare_frechet(count) for count in (options.count, 5000)},
            },
            indent=1,
        )
    )


def put_pictures(options: ScoringOptions) -> tuple[Path, Path]:
    """The real and the fake folder, as PNG files."""
    sides = options.folder / "real", options.folder / "fake"
    files = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in SUFFIXES) if options.photos else []
    if options.photos and len(files) < 2 * options.count:
        raise UserError(f"{options.photos} holds {len(files)} pictures; --count {options.count} takes twice as many")
    for number, side in enumerate(sides):
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir()
        if files:
            for i, file in enumerate(files[number :: len(files) // options.count][: options.count]):
                fit_square(Image.open(file).convert("RGB"), options.size).save(side / f"{i:05d}.png")
        else:
            for i, picture in enumerate(drawn_pictures(options.count, (options.size, options.size), number)):
                save_png(picture, side / f"{i:05d}.png")
    return sides


def compare_whole(options: ScoringOptions, sides: tuple[Path, Path], weights: Path) -> dict:
    """From files to scores, networks loaded each time; 'cached' finds the reference's features on the disk."""
    cache = options.folder / "cache"

    def ours() -> dict:
        chosen = EvaluationOptions(
            real=str(sides[0]), fake=[str(sides[1])], metrics="fid,kid,inception_score", weights=weights,
            batch=options.batch, device="cpu", cache=str(cache),
        )  # fmt: skip
        return next(evaluate(chosen))["scores"]

    def theirs() -> dict:
        found = torch_fidelity.calculate_metrics(
            input1=str(sides[1]), input2=str(sides[0]), fid=True, kid=True, isc=True, cuda=False, cache=False,
            feature_extractor_weights_path=str(weights), kid_subset_size=min(1000, options.count // 2),
            save_cpu_ram=True, verbose=False,  # its loading in this process too, or its time would not be seen
        )  # fmt: skip
        return {name: found[key] for name, key in NAMES.items()}

    seconds: dict[str, list[float]] = {"theirs": [], "cold": [], "cached": []}
    for _ in range(options.rounds):
        shutil.rmtree(cache, ignore_errors=True)
        expected = measured(theirs, seconds["theirs"])
        for way in ("cold", "cached"):
            found = measured(ours, seconds[way])
            _check_same({name: found[name] for name in NAMES}, expected)
    ratios = {way: _ratio(seconds["theirs"], seconds[way]) for way in ("cold", "cached")}
    medians = {way: round(statistics.median(values), 2) for way, values in seconds.items()}
    return {"cpu_seconds": medians, "times_as_fast": ratios, "scores": found, "torch_fidelity": expected}


def compare_extractors(options: ScoringOptions, weights: Path, pictures: int = 16) -> dict:
    """Pictures per second of all layers by resize, and the share that the resize has in it."""
    drawn = drawn_pictures(pictures, (options.size, options.size))
    layers = ["2048", "logits_unbiased"]
    network = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "theirs", layers, feature_extractor_weights_path=str(weights)
    )
    found = {}
    for resize in ("legacy", "clean", "pytorch"):
        extractor = load_inception(("2048", "logits"), resize, weights, torch.device("cpu"))
        seconds: dict[str, list[float]] = {"theirs": [], "ours": [], "resize": []}
        for _ in range(2 + options.rounds):
            measured(lambda: network(drawn), seconds["theirs"])
            measured(lambda e=extractor: e(drawn), seconds["ours"])
            measured(lambda r=resize: network_input(drawn, r), seconds["resize"])
        seconds = {way: values[1:] for way, values in seconds.items()}  # the first one warms up
        middle = {way: statistics.median(values) for way, values in seconds.items()}
        found[resize] = {
            "pictures_per_s": round(pictures / middle["ours"], 2),
            "torch_fidelity_pictures_per_s": round(pictures / middle["theirs"], 2),
            "times_as_fast": _ratio(seconds["theirs"], seconds["ours"]),
            "share_of_resize": round(middle["resize"] / middle["ours"], 4),
        }
    return found


def compare_frechet(count: int) -> dict:
    """The distance from given statistics of 2,048 features, beside scipy's matrix root, which the others use."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    sides = [gaussian(torch.randn(count, WIDTH, generator=generator).double() * scale + i) for i in (0, 0.01)]
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    expected = measured(lambda: _by_root(*sides), seconds["theirs"])
    found = measured(lambda: frechet_distance(*sides), seconds["ours"])
    _check_same({"frechet": found}, {"frechet": expected})
    rounded = {way: round(values[0], 2) for way, values in seconds.items()}
    return {"cpu_seconds": rounded, "times_as_fast": _ratio(seconds["theirs"], seconds["ours"])}


def _by_root(a: Statistics, b: Statistics) -> float:
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    means = float((a.mean - b.mean).square().sum())
    return means + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(root.trace())


def measured(work: Callable, seconds: list[float]):
    """What `work` returns; its CPU time is appended."""
    start = time.process_time()
    found = work()
    seconds.append(time.process_time() - start)
    return found


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(theirs, ours, strict=True)), 2)


def _check_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for name, value in theirs.items():
        if abs(ours[name] - value) > SAME * abs(value):
            raise UserError(f"{name} is {ours[name]} here and {value} there: not the same work, so no comparison")


if __name__ == "__main__":
    run(main, ScoringOptions)

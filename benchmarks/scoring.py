"""FID, KID and Inception Score of two folders, beside torch-fidelity and pytorch-fid on the same files and weights.

The weights are random ones, which take as long as any. clean-fid is not here: its network is a download.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import scipy
import torch
import torch_fidelity
from torch import Tensor

from benchmarks.images import fresh_folder, sized_images
from benchmarks.side_by_side import Row, Setting, check_close, compared, in_turns
from evaluation.extractors.inception import load_inception
from evaluation.metrics.frechet import Statistics, frechet_distance, statistics
from evaluation.options import EvaluationOptions
from evaluation.scoring.pipeline import evaluate
from tests.inception_files import drawn_images, write_random

COUNT = {"cpu": 64, "cuda": 2560}
"""Images a side."""
SIZE, WIDTH = 64, 2048
FEW_ROUNDS = 2
"""On a CPU, of what takes a minute; without warming up."""
SAME = {"cpu": 1e-3, "cuda": 1e-2}
"""Relative difference of a score: on a GPU the others let convolutions round to TF32, which ours does not."""
NAMES = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "inception_score": "inception_score_mean",
}
"""Ours and torch-fidelity's."""


class Case(NamedTuple):
    """What is scored, and by which weights."""

    setting: Setting
    count: int
    """Images a side."""
    real: Path
    fake: Path
    weights: Path

    @property
    def on_gpu(self) -> bool:
        return self.setting.device.type == "cuda"


def rows(setting: Setting, count: int | None = None) -> Iterator[Row]:
    """`count`: images a side, at least 64 (default: by device)."""
    case = prepare(setting, count or COUNT[setting.device.type])
    yield from _torch_fidelity(case)
    if find_spec("pytorch_fid"):
        yield _pytorch_fid(case)
    else:
        print("scoring: pytorch-fid is not installed, so nothing is compared with it", file=sys.stderr)
    yield _extractor(case)
    yield _frechet_term(case)


def prepare(setting: Setting, count: int) -> Case:
    """Both sides as PNG files, and the weights."""
    folder = fresh_folder(setting, "scoring")
    sides = folder / "real", folder / "fake"
    for side in sides:
        side.mkdir()
    for i, image in enumerate(sized_images(setting, 2 * count, SIZE)):
        image.save(sides[i % 2] / f"{i:05d}.png")
    return Case(setting, count, *sides, write_random(folder / "inception.pth"))


def ours(case: Case, metrics: str, resize: str, cold: bool) -> dict[str, float]:
    """From files to scores, the network loaded anew; unless `cold`, the reference's features are found on the disk."""
    cache = case.real.parent / "cache"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    options = EvaluationOptions(
        real=str(case.real), fake=[str(case.fake)], metrics=metrics, weights=case.weights, resize=resize,
        batch=64 if case.on_gpu else 32, device=str(case.setting.device), cache=str(cache),
    )  # fmt: skip
    return next(evaluate(options))["scores"]


def theirs(case: Case) -> dict[str, float]:
    """The same by torch-fidelity, by our names."""
    found = torch_fidelity.calculate_metrics(
        input1=str(case.fake), input2=str(case.real), fid=True, kid=True, isc=True, cuda=case.on_gpu, cache=False,
        feature_extractor_weights_path=str(case.weights), kid_subset_size=min(1000, case.count // 2),
        save_cpu_ram=not case.on_gpu,  # on a CPU it loads in this process then, or its time would not be seen
        verbose=False,
    )  # fmt: skip
    return {name: found[key] for name, key in NAMES.items()}


def by_root(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance through scipy's matrix root, as most of the others compute it."""
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    means = float((a.mean - b.mean).square().sum())
    return means + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(root.trace())


def _torch_fidelity(case: Case) -> Iterator[Row]:
    found: dict[str, dict[str, float]] = {}
    seconds = _in_turns(case, found, FEW_ROUNDS, {
        "theirs": partial(theirs, case),
        "cold": partial(ours, case, ",".join(NAMES), "legacy", True),
        "cached": partial(ours, case, ",".join(NAMES), "legacy", False),
    })  # fmt: skip
    for way, goal in (("cold", 1.4), ("cached", 2.5)):
        parity = _check_scores(case, {name: found[way][name] for name in NAMES}, found["theirs"])
        yield compared(
            "scoring", f"FID, KID, IS of {case.count} images a side, reference {way}",
            f"torch-fidelity {version('torch-fidelity')}", "images/s", 2 * case.count,
            seconds["theirs"], seconds[way], parity, goal, scores=found[way],
        )  # fmt: skip


def _pytorch_fid(case: Case) -> Row:
    from pytorch_fid import fid_score, inception

    state, found = torch.load(case.weights, weights_only=True), {}
    paths, workers = [str(case.real), str(case.fake)], 8 if case.on_gpu else 0

    def root() -> dict[str, float]:
        with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):  # no download
            return {"fid": float(fid_score.calculate_fid_given_paths(paths, 50, case.setting.device, WIDTH, workers))}

    seconds = _in_turns(case, found, 1, {"theirs": root, "ours": partial(ours, case, "fid", "pytorch", True)})
    parity = _check_scores(case, {"fid": found["ours"]["pytorch_fid"]}, found["theirs"])
    return compared(
        "scoring", f"FID of {case.count} images a side, reference cold", f"pytorch-fid {version('pytorch-fid')}",
        "images/s", 2 * case.count, seconds["theirs"], seconds["ours"], parity, 1.4,
    )  # fmt: skip


def _extractor(case: Case) -> Row:
    """Uint8 images to features and logits; of one batch, without files."""
    at_once, device = 64 if case.on_gpu else 8, case.setting.device
    drawn = drawn_images(at_once, (SIZE, SIZE)).to(device)
    network = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(case.weights)
    ).to(device)
    extractor = load_inception(("2048", "logits"), "legacy", case.weights, device)
    expected: list[Tensor] = [features.cpu() for features in network(drawn)]
    found = extractor(drawn)
    pairs = zip(extractor.taps, expected, strict=True)
    apart = max(check_close(tap, found[tap], features, SAME[device.type]) for tap, features in pairs)
    seconds = in_turns({"theirs": lambda: network(drawn), "ours": lambda: extractor(drawn)},
                       min(case.setting.rounds, 3), case.setting.clock)  # fmt: skip
    return compared(
        "scoring", f"Inception's features of {at_once} images", f"torch-fidelity {version('torch-fidelity')}",
        "images/s", at_once, seconds["theirs"], seconds["ours"], f"features within {apart:.0e}",
    )  # fmt: skip


def _frechet_term(case: Case, count: int = 5000) -> Row:
    """From given statistics of 2,048 features; on the CPU in any case, with its threads."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    sides = [statistics(torch.randn(count, WIDTH, generator=generator).double() * scale + i) for i in (0, 0.01)]
    found: dict[str, dict[str, float]] = {}
    seconds = _in_turns(case, found, 1, {
        "theirs": lambda: {"distance": by_root(*sides)}, "ours": lambda: {"distance": frechet_distance(*sides)}
    })  # fmt: skip
    parity = _check_scores(case, found["ours"], found["theirs"])
    return compared("scoring", f"Fréchet term, {WIDTH} features of {count:,} images", f"scipy {scipy.__version__}",
                    "distances/s", 1, seconds["theirs"], seconds["ours"], parity, 5)  # fmt: skip


def _in_turns(case: Case, found: dict, few: int, ways: dict[str, Callable[[], dict]]) -> dict[str, list[float]]:
    """Seconds; what each way returned last is put into `found`."""
    kept = {name: lambda name=name, way=way: found.update({name: way()}) for name, way in ways.items()}
    rounds = case.setting.rounds if case.on_gpu else min(case.setting.rounds, few)
    return in_turns(kept, rounds, case.setting.clock, warm_up=int(case.on_gpu))


def _check_scores(case: Case, found: dict[str, float], expected: dict[str, float]) -> str:
    """Raises Different."""
    tolerance = SAME[case.setting.device.type]
    pairs = {name: (torch.tensor(side[name], dtype=torch.float64) for side in (found, expected)) for name in expected}
    apart = [check_close(name, *pair, tolerance) for name, pair in pairs.items()]
    return f"scores within {max(apart):.0e}"

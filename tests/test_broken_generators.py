"""Each way to fail is seen by the scores meant for it, and by no less than that; real against real is the floor.

Features are tile means and CLIP is a stub that reads one colour, so this tests what the scores make of features.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.options import MeasureOptions
from evaluation.scoring.evaluator import Evaluator, Setting
from evaluation.sources.opening import open_source
from toolkit.launching.processes import Processes

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210), "grey": (120, 120, 120)}
COUNT = 160
METRICS = "fid,kid,precision_recall,diversity,vendi,memorisation,clip_score,retrieval,joint_fd"


class Tiles:
    """Means of 16 tiles in three colours."""

    taps = ("inception_64",)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {self.taps[0]: torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)}

    def protocol(self) -> dict:
        return {}


class ColourClip:
    """Knows the mean colour of an image, and that of a caption's last word."""

    taps = ("clip",)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {"clip": torch.nn.functional.normalize(images.float().mean(dim=(2, 3)) - 100, dim=1)}

    def encode_texts(self, captions: list[str]) -> Tensor:
        colours = torch.tensor([COLOURS[caption.split()[-1]] for caption in captions]).float()
        return torch.nn.functional.normalize(colours - 100, dim=1)

    def protocol(self) -> dict:
        return {}


def discs(seed: int) -> list[tuple[Image.Image, str]]:
    """A disc of the caption's colour somewhere on a ground of any shade."""
    rng, found = np.random.default_rng(seed), []
    y, x = np.mgrid[:16, :16]
    for i in range(COUNT):
        name = list(COLOURS)[i % 4]
        pixels = np.full((16, 16, 3), rng.integers(60, 140), dtype=np.float64)
        inside = np.hypot(x - rng.uniform(5, 11), y - rng.uniform(5, 11)) < rng.uniform(4, 8)
        pixels[inside] = np.array(COLOURS[name]) + rng.normal(0, 12, 3)
        found.append((Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"a disc in {name}"))
    return found


def broken(name: str) -> list[tuple[Image.Image, str]]:
    fresh = discs(seed=2)
    first = {caption: image for image, caption in reversed(fresh)}
    rng = np.random.default_rng(3)
    return {
        "fresh": lambda: fresh,
        "constant": lambda: [(fresh[3][0], caption) for _, caption in fresh],
        "one per prompt": lambda: [(first[caption], caption) for _, caption in fresh],
        "noise": lambda: [
            (Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), caption) for _, caption in fresh
        ],
        "shuffled": lambda: [(image, fresh[i - 5][1]) for i, (image, _) in enumerate(fresh)],
        "copied": lambda: discs(seed=1),
    }[name]()


def write(folder: Path, pairs: list[tuple[Image.Image, str]]) -> Path:
    folder.mkdir()
    for i, (image, caption) in enumerate(pairs):
        image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("broken")
    real = open_source(write(folder / "real", discs(seed=1)))
    names = ("fresh", "constant", "one per prompt", "noise", "shuffled", "copied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.scoring.evaluator.load_inception", lambda *arguments: Tiles())
        patch.setattr("evaluation.scoring.evaluator.load_clip", lambda *arguments: ColourClip())
        options = MeasureOptions(metrics=METRICS, feature_layer=64)
        evaluator = Evaluator(options, real, Setting(Processes(None, 60), torch.device("cpu")))
        return {name: evaluator(open_source(write(folder / name, broken(name)))) for name in names}


def value(reports: dict[str, dict], name: str, score: str) -> float:
    scores = reports[name]["scores"]
    return scores.get(f"{score}_64", scores.get(score))


@pytest.mark.parametrize("name, score, at_most, than", [
    ("constant", "recall", 0.05, "fresh"),
    ("constant", "coverage", 0.2, "fresh"),
    ("constant", "vendi", 0.9, "fresh"),
    ("one per prompt", "diversity", 1e-6, "fresh"),
    ("noise", "precision", 0.05, "fresh"),
    ("noise", "density", 0.05, "fresh"),
    ("shuffled", "clip_score", 0.5, "fresh"),
    ("shuffled", "r_precision", 0.5, "fresh"),
    ("copied", "authenticity", 1e-6, "fresh"),
    ("copied", "nearest_distance", 1e-6, "fresh"),
])  # fmt: skip
def test_a_score_falls(reports, name, score, at_most, than):
    assert value(reports, name, score) <= at_most * value(reports, than, score)


@pytest.mark.parametrize("name, score", [
    ("constant", "fid"), ("constant", "kid"), ("one per prompt", "kid"), ("noise", "fid"), ("noise", "kid"),
    ("shuffled", "joint_fd"),
])  # fmt: skip
def test_a_distance_rises(reports, name, score):
    floor = abs(value(reports, "fresh", score))
    assert value(reports, name, score) > 3 * floor + 1e-3


def test_what_the_other_scores_cannot_see(reports):
    """FID praises copies and is blind to captions: why the others are there."""
    assert value(reports, "copied", "fid") < 1e-6 < value(reports, "fresh", "fid")
    assert value(reports, "shuffled", "fid") == pytest.approx(value(reports, "fresh", "fid"), rel=1e-6)
    shuffled = value(reports, "fresh", "clip_score_shuffled")
    assert value(reports, "shuffled", "clip_score") < value(reports, "fresh", "clip_score")
    assert shuffled < 0.6 * value(reports, "fresh", "clip_score")


def test_collapse_is_said(reports):
    """Row 61: scores of a collapsed generator are finite, so a note says it."""
    assert any("collapsed?" in note for note in reports["constant"]["notes"])
    for name in ("constant", "one per prompt"):
        assert any("all images of a prompt are equal for 4 prompts" in note for note in reports[name]["notes"])
    assert not any("collapsed?" in n or "are equal" in n for n in reports["fresh"]["notes"] + reports["noise"]["notes"])
    assert all(value is not None and np.isfinite(value) for value in reports["constant"]["scores"].values())

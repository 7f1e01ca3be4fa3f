"""Options shared by the commands that score: where images come from, what is measured, by which networks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.errors import check


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """Which images of a source are taken, or drawn if it is a checkpoint."""

    count: int | None = None
    """Images, drawn by seed (default: all; a checkpoint draws as many as the reference has, or one a prompt)."""
    size: int | None = None
    """Centre-crop and resize every image to this many pixels (default: as they are)."""
    prompts: str | None = None
    """Prompts for a checkpoint: a shard folder (local or an address), or a text file with one a line (default: --real
    if it is shards)."""
    encoder_weights: Path | None = None
    """Local weights of the checkpoint's text encoder, for prompts from a text file."""
    truncation: float = 1.0
    """Scale of a checkpoint's noise, 0 to 2: below 1 precision rises, and recall and diversity fall."""
    batch: int = 32
    """Images at a time."""
    seed: int = 0
    """Chooses the images, and the noise of a checkpoint."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check(self.batch > 0, "batch", self.batch, "at least 1")
        for name in ("count", "size"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "at least 1")
        check(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")
        check(0 <= self.truncation <= 2, "truncation", self.truncation, "from 0 to 2")


@dataclass(frozen=True, kw_only=True)
class FakeOptions(DrawingOptions):
    """What is scored, and which images of it."""

    fake: str
    """What is scored: a checkpoint (ckpt_* folder, run folder, RUN/best or generator.safetensors), a shard folder
    (local or an address), or an image folder (captions: a .txt of the same stem each)."""


@dataclass(frozen=True, kw_only=True)
class FakesOptions(DrawingOptions):
    """What is scored where several are, and which images of them."""

    fake: list[str]
    """What is scored: a checkpoint (ckpt_* folder, run folder, RUN/best or generator.safetensors), a shard folder
    (local or an address), or an image folder (captions: a .txt of the same stem each). Several of them, such as
    RUN/ckpt_*, are scored one after the other."""


@dataclass(frozen=True, kw_only=True)
class InceptionOptions:
    """The network behind FID, KID, precision and recall, and whatever else compares images by features."""

    weights: Path | None = None
    """torch-fidelity's Inception weights file (default: its download)."""
    feature_layer: Literal[64, 192, 768, 2048] = 2048
    """Inception features; only 2048 is called "fid", others "fid_768" and so on, and compare with nothing else."""
    resize: Literal["legacy", "clean", "pytorch"] = "legacy"
    """How images come to Inception's 299 px: as the first FID code and torch-fidelity (legacy), as clean-fid, or as
    pytorch-fid. Scores by 'clean' are called clean_fid and so on; no two of these compare."""


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """The real images."""

    real: str | None = None
    """The reference: an image folder, a shard folder (local or an address) or a checkpoint."""
    allow_few: bool = False
    """Score fewer than 64 images all the same."""
    cache: str | None = None
    """Folder that keeps the reference's features for the next time (default: in the user's cache folder; '': none)."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(InceptionOptions):
    """How images are measured by any metric."""

    splits: int = 10
    """Parts that the Inception Score's mean and deviation are taken over."""
    clip_model: str = "ViT-B-32"
    """open_clip architecture for clip_score, retrieval, clip_fd and joint_fd. Not the one that conditions the
    generator: that would praise itself."""
    clip_pretrained: str = "laion2b_s34b_b79k"
    """open_clip tag of its weights."""
    clip_weights: Path | None = None
    """Local copy of these weights (default: open_clip's download)."""
    prefix: str = ""
    """Put in front of every caption that CLIP reads."""
    dinov2_model: str = "vit_large_patch14_dinov2.lvd142m"
    """timm name of the DINOv2 network for dinov2_fd."""
    dinov2_weights: Path | None = None
    """Local copy of its weights (default: timm's download)."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(NetworkOptions):
    """What is measured, and how; where the images come from is said elsewhere."""

    metrics: str = "fid,kid"
    """Any of fid, fid_infinity, kid, inception_score, precision_recall, clip_fd, dinov2_fd, clip_score, retrieval,
    probe, text_probe, diversity, vendi, joint_fd, memorisation, joined by commas; 'all' takes all but dinov2_fd."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(MeasureOptions, ReferenceOptions, FakesOptions):
    """Score images by several metrics at once: one decode and one forward of each network for all of them."""

    out: Path | None = None
    """File for the report (.json; the pairs of --metrics memorisation go beside it), a folder for several; default:
    standard output alone. RUN/evaluations is where `python -m evaluation.report` looks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.fake) and all(self.fake), "fake", self.fake, "one or more paths or addresses")


def listed(arguments: list[str]) -> list[str]:
    """`--fake A B` -> `--fake ["A", "B"]`, the form in which a list is parsed."""
    if "--fake" not in arguments:
        return arguments
    first = arguments.index("--fake") + 1
    last = next((i for i in range(first, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    return [*arguments[:first], json.dumps(arguments[first:last]), *arguments[last:]]

"""Every option of a training run, in groups: each group stands beside the code that it steers."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Protocol

from toolkit.data.loading_options import LoadingOptions
from toolkit.errors import UserError, check
from toolkit.health.monitor import WatchOptions
from toolkit.health.score_options import ScoreOptions
from toolkit.launching.compute_options import ComputeOptions
from toolkit.networks.architecture import ModelConfig
from toolkit.run_folder.record_options import RecordOptions
from toolkit.training import penalty
from toolkit.training.adaptive import AdaptiveOptions
from toolkit.training.augment_options import AugmentOptions
from toolkit.training.average_options import AverageOptions
from toolkit.training.conditioning import ConditioningOptions
from toolkit.training.loss_options import LossOptions
from toolkit.training.optimizer_options import OptimizerOptions
from toolkit.training.penalty import PenaltyOptions, share_left, weight_of


class Group(Protocol):
    """Options of one topic; its docstring is the heading in --help."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""


@dataclass(frozen=True)
class RunOptions:
    """The run: data, length, batch"""

    data: str = ""
    """Shard folder made by `python -m shards.create`: a local one, or its https://, s3:// or gs:// address."""
    out_dir: str = "runs/gan"
    """Run folder: config.yaml, ckpt_*, sample_*.png, training_log.json, training_plots.png, evaluations."""
    resume_from: str | None = None
    """A checkpoint folder, or 'latest' (newest valid checkpoint of out_dir, which must have one). By default a run goes
    on where out_dir left off, and starts anew where out_dir has no checkpoint."""
    iters: int = 100_000
    """Optimizer steps of G until the end, counted from the very start (a resumed run does the rest)."""
    kimg: float | None = None
    """Length in thousands of real images shown to D; replaces iters when given."""
    batch: int | Literal["auto"] = 32
    """Images per optimizer step, over all processes and accumulated micro-batches. 'auto' is 32 with batch_gpu
    'auto'."""
    batch_gpu: int | Literal["auto"] | None = None
    """Most images one process handles at once; the rest of its share is accumulated. Default: no limit. 'auto': as
    many as fit on the card, tried out before training."""
    seed: int = 0
    """Seed of every random draw: order, captions, noise, augmentation, initial weights."""
    dry_run: bool = False
    """Print the resolved config, the networks' sizes and their multiply-adds for one image, then stop."""

    @property
    def tries_batch_gpu(self) -> bool:
        """Whether the largest micro-batch that fits on the device is to be found by trying."""
        return "auto" in (self.batch, self.batch_gpu)

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("iters",) + (("batch",) if self.batch != "auto" else ()):
            check(1 <= getattr(self, name) <= 10**9, name, getattr(self, name), "a whole number of at least 1")
        check(0 <= self.seed <= 2**62, "seed", self.seed, "a whole number of at least 0")
        check(self.kimg is None or 0 < self.kimg < 1e9, "kimg", self.kimg, "a number above 0")
        fits = self.batch_gpu is None or self.batch_gpu == "auto" or self.batch_gpu >= 1
        check(fits, "batch_gpu", self.batch_gpu, "at least 1")


# Inherited, not composed: flags, YAML files, checkpoints and code name an option by one word, as `config.lr_g`.
@dataclass(frozen=True)
class TrainConfig(
    ScoreOptions, WatchOptions, RecordOptions, ComputeOptions, LoadingOptions, AverageOptions, AdaptiveOptions,
    AugmentOptions, PenaltyOptions, ConditioningOptions, LossOptions, OptimizerOptions, ModelConfig, RunOptions,
):  # fmt: skip
    """Train a text-conditional GAN on shards: accelerate launch toolkit/train.py --data SHARDS --out_dir RUN."""

    # The options as they are given, 'auto' among them. What runs takes `resolved()`.

    SECTIONS: ClassVar[tuple[type[Group], ...]] = (
        RunOptions, ModelConfig, OptimizerOptions, LossOptions, ConditioningOptions, PenaltyOptions, AugmentOptions,
        AdaptiveOptions, AverageOptions, LoadingOptions, ComputeOptions, RecordOptions, ScoreOptions, WatchOptions,
    )  # fmt: skip
    """In the order of --help: most used first."""

    def __post_init__(self) -> None:
        for group in self.SECTIONS:
            group.validate(self)
        self._check_frozen()
        self._check_something_adapts()
        if self.match_weight and not self.match_width:
            raise UserError(
                f"match_weight {self.match_weight:g} with match_width 0: D has no head to find captions with; pass "
                "--match_width 128, or --match_weight 0 --g_match_weight 0"
            )

    def _check_frozen(self) -> None:
        if (self.frozen_weights or self.frozen_size) and not self.frozen_backbone:
            name = "frozen_weights" if self.frozen_weights else "frozen_size"
            raise UserError(f"{name} without frozen_backbone: say of which network (--frozen_backbone timm/NAME)")
        if self.d_scales == 0 and (self.r1_penalty or self.r2_penalty):
            raise UserError(
                f"r1_penalty {self.r1_penalty}, r2_penalty {self.r2_penalty} with d_scales 0: they differentiate the "
                "trained discriminator, of which there is none; pass --r1_penalty 0 --r2_penalty 0, or --d_scales 1"
            )

    def _check_something_adapts(self) -> None:
        """What adapts needs something to adapt."""
        if self.adaptive_augment and not self.diffaug_names:
            raise UserError(
                "adaptive_augment without diffaug: say what may be augmented (--diffaug color,translation,cutout)"
            )
        if self.adaptive_r1 and not (self.r1_penalty or self.r2_penalty):
            raise UserError("adaptive_r1 with r1_penalty 0 and r2_penalty 0: it scales them; pass --r1_penalty 0.1")

    def resolved(self) -> "ResolvedConfig":
        """The same with numbers for batch, batch_gpu and both penalties, no head that nothing trains, and the groups of
        minibatch_std that pairs need."""
        batch = 32 if self.batch == "auto" else self.batch
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"batch": batch}
        values["batch_gpu"] = None if self.batch_gpu == "auto" else self.batch_gpu
        for name in ("r1_penalty", "r2_penalty"):
            values[name] = weight_of(values[name], self.resolution, batch)
        values["std_group"] = 2 if self.pairs else self.std_group
        values["match_width"] = self.match_width if self.match_weight else 0
        return ResolvedConfig(**values)

    @property
    def evaluation_steps(self) -> int:
        """Steps between evaluations; 0: none."""
        return self.eval_every or (self.ckpt_every if self.scored_by_evaluation else 0)

    @property
    def evaluation_seconds(self) -> float:
        """Most that one may take: the other processes wait while the main one computes the scores."""
        return min(60 * self.eval_minutes, self.timeout / 2)


@dataclass(frozen=True)
class ResolvedConfig(TrainConfig):
    """The options of a run as they are used and recorded.

    `workers` and `resident` may still be 'auto': that is no number to come, but leaves both to the run itself.
    """

    batch: int = 32
    batch_gpu: int | None = None
    r1_penalty: float = penalty.DEFAULT
    r2_penalty: float = penalty.DEFAULT

    def penalties(self, images_seen: int) -> tuple[float, float]:
        """Weights of R1 and R2 after `images_seen` images, without what adapts and what rollbacks add."""
        share = share_left(images_seen, self, self.total_steps * self.batch * self.d_steps)
        return share * self.r1_penalty, share * self.r2_penalty

    @property
    def column_split(self) -> tuple[int, float] | None:
        """How many of D's columns are its own, and the weight of the frozen ones; None: each counts alike."""
        if not self.frozen_backbone or self.d_scales == 0 or self.frozen_weight == "even":
            return None
        return self.d_scales, self.frozen_weight

    @property
    def total_steps(self) -> int:
        if self.kimg is None:
            return self.iters
        return max(1, round(self.kimg * 1000 / (self.batch * self.d_steps)))

    def per_process(self, processes: int) -> tuple[int, int]:
        """(images of one process per step, micro-batches they come in). Raises UserError if they do not divide."""
        if self.batch % processes:
            raise UserError(f"batch {self.batch} is not divisible by {processes} processes; choose a multiple")
        share = self.batch // processes
        cap = share if self.batch_gpu is None else self.batch_gpu
        parts = -(-share // cap)
        if share % parts:
            raise UserError(
                f"batch {self.batch} gives {share} images to each of {processes} processes, which batch_gpu "
                f"{self.batch_gpu} does not split evenly; choose a divisor of {share}"
            )
        if self.pairs and share // parts % 2:
            raise UserError(
                f"pairs with {share // parts} images at once: both of a pair must be in one micro-batch; choose an "
                "even number (--batch, --batch_gpu)"
            )
        return share, parts

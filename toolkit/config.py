"""Every option of a training run, declared once: field, default, help text, allowed range."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.errors import UserError, check
from toolkit.health.monitor import WatchOptions
from toolkit.health.score_options import ScoreOptions
from toolkit.networks.architecture import ModelConfig, named_in
from toolkit.training.adaptive import AdaptiveOptions
from toolkit.training.conditioning import ConditioningOptions
from toolkit.training.penalty import PenaltyOptions, share_left, weight_of

DIFFAUG_NAMES = ("color", "translation", "cutout", "flip")
TRACKER_NAMES = ("wandb", "tensorboard")


@dataclass(frozen=True)
class TrainConfig(AdaptiveOptions, WatchOptions, ScoreOptions, PenaltyOptions, ConditioningOptions, ModelConfig):
    """Train a text-conditional GAN on shards: accelerate launch toolkit/train.py --data SHARDS --out_dir RUN."""

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
    workers: int | Literal["auto"] = "auto"
    """Data loading processes per training process; 0 loads in the training process. 'auto' starts there and goes up to
    the CPU cores while steps wait for their data and it helps."""
    resident: bool | Literal["auto"] = "auto"
    """Whether each process keeps the whole data set, decoded, in the memory of its device. 'auto': after 20 steps, if
    that takes no more than a quarter of what is then free."""
    max_bad: float = 0.01
    """Most damaged samples, as a share of those read so far (of 1,000 at least), that others may stand in for; more end
    the run, with 0 the first."""
    seed: int = 0
    """Seed of every random draw: order, captions, noise, augmentation, initial weights."""

    loss: Literal["hinge", "nonsaturating", "relativistic"] = "relativistic"
    """Adversarial loss of both networks; 'relativistic' pairs each real image with a generated one."""
    lecam: float = 0.0
    """Weight of LeCam regularisation in D's loss, which holds its logits near their running means; 0 = off."""
    feature_matching: float = 0.0
    """Weight in G's loss of the distance between mean D features of real and generated images; 0 = off."""
    perceptual: float = 0.0
    """Weight in G's loss of the VGG-16 feature distance to the real image of the same caption; 0 = off."""
    perceptual_weights: str | None = None
    """Local torchvision VGG-16 state dict (.pth or .safetensors); by default torchvision downloads it."""
    frozen_weights: str | None = None
    """Local file of frozen_backbone (timm's or open_clip's .safetensors or .pth); by default its library downloads
    it."""
    clip_guidance: float = 0.0
    """Weight in G's loss of the squared angle between image and caption in the space of the CLIP that embedded the
    captions; 0 = off."""
    clip_guidance_weights: str | None = None
    """Local copy of that CLIP's weights; by default open_clip downloads them."""
    d_steps: int = 2
    """D steps per G step, each on fresh images: 1 or 2, up to 8."""
    mirror: bool = False
    """Show D each real image as it is or flipped left to right, with equal chance: a data set of twice the size (the
    x-flips of StyleGAN2-ADA, arXiv 2006.06676), for images and captions that do not tell left from right. Samples,
    scores and evaluation keep the images as they are; diffaug's flip is for real and generated ones alike."""
    diffaug: str = "translation"
    """DiffAugment policy for real and fake: any of color, translation, cutout, flip, joined by commas; '' = off."""
    augment_p: float = 1.0
    """Probability of each transform of diffaug for each image; adaptive_augment starts from 0 instead."""

    lr_g: float = 2.5e-4
    """Learning rate of G (Adam)."""
    lr_d: float = 5e-4
    """Learning rate of D (Adam); above lr_g for two time-scale training (TTUR)."""
    beta1: float = 0.0
    """Adam's beta1 of both networks."""
    beta2: float = 0.99
    """Adam's beta2 of both networks."""
    grad_clip: float = 0.0
    """Largest L2 norm of each network's gradient; 0 = no clipping."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of both networks; by default what `accelerate launch --mixed_precision` says. fp16 needs a GPU."""

    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """Compile both losses with torch.compile, 'reduce-overhead' into CUDA graphs too: a minute or two at the start for
    faster steps on a GPU. What cannot be compiled runs as it is, with a line to say so."""
    sync_bn: bool = False
    """Batch-norm statistics over the images of all processes (GPUs only); without it each uses its own share."""
    timeout: float = 1800
    """Seconds a process waits for another before the run ends with an error."""

    ema_decay: float = 0.999
    """Decay per step of the averaged generator, which makes all samples."""
    ema_start: int = 0
    """Steps before averaging starts; until then the average equals G."""
    ema_ramp: bool = True
    """Whether the decay grows as min(ema_decay, (1 + step) / (10 + step))."""
    ema_kimg: float | None = None
    """Half-life of the average in thousands of images that G has drawn, `batch` a step whatever d_steps is; replaces
    ema_decay when given."""
    ema_rampup: float = 0.0
    """Longest half-life of any average as a share of the images drawn so far (StyleGAN2-ADA: 0.05); 0 = no limit."""
    ema_profiles: str = ""
    """Half-lives of further averages, counted as ema_kimg is, such as 5,20,80: each in a file of its own in every
    checkpoint, for `python -m evaluation.choose_average`; '' = none."""

    log_every: int = 50
    """Steps between lines of training_log.json."""
    sample_every: int = 1000
    """Steps between sample grids and plots."""
    ckpt_every: int = 5000
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the newest checkpoints stay, at least 2; 0 keeps all. The best by `score` stays besides."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do when a checkpoint cannot be written (disk full): go on and try again at the next, or end."""
    check_ranks_every: int = 1000
    """Steps between comparisons of the networks of all processes, which must be bitwise equal; 0 = never."""
    n_sample: int = 32
    """Images in a sample grid: four noise vectors for each of n_sample / 4 captions."""
    track: str = ""
    """Trackers beside the local files: wandb, tensorboard, or both joined by a comma."""
    track_project: str = "text-gan"
    """Project name for the trackers."""
    wandb_mode: Literal["online", "offline"] = "online"
    """Whether wandb sends the run or stores it in out_dir/wandb for `wandb sync`."""
    dry_run: bool = False
    """Print the resolved config, the networks' sizes and their multiply-adds for one image, then stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_watching()
        self.check_adaptive()
        self.check_scoring()
        self.check_penalties()
        self.check_conditioning()
        counts = ("iters", "log_every", "sample_every", "ckpt_every", "n_sample")
        for name in counts + (("batch",) if self.batch != "auto" else ()):
            check(1 <= getattr(self, name) <= 10**9, name, getattr(self, name), "a whole number of at least 1")
        check(self.workers == "auto" or self.workers >= 0, "workers", self.workers, "a whole number of at least 0")
        for name in ("seed", "ema_start", "check_ranks_every"):
            check(0 <= getattr(self, name) <= 2**62, name, getattr(self, name), "a whole number of at least 0")
        for name in ("lecam", "feature_matching", "perceptual", "clip_guidance", "grad_clip"):
            check(0 <= getattr(self, name) < 1e9, name, getattr(self, name), "a finite number of at least 0")
        for name in ("lr_g", "lr_d"):
            check(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        for name in ("beta1", "beta2", "ema_decay"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        for name in ("kimg", "ema_kimg"):
            value = getattr(self, name)
            check(value is None or 0 < value < 1e9, name, value, "a number above 0")
        check(self.batch_gpu in (None, "auto") or self.batch_gpu >= 1, "batch_gpu", self.batch_gpu, "at least 1")
        for name in ("augment_p", "max_bad", "ema_rampup"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        self._check_frozen()
        self._check_something_adapts()
        check(1 <= self.timeout <= 10**7, "timeout", self.timeout, "at least 1 second")
        check(1 <= self.d_steps <= 8, "d_steps", self.d_steps, "from 1 to 8")
        check(
            self.keep == 0 or self.keep >= 2,
            "keep",
            self.keep,
            "at least 2 (one may be lost while written), or 0",
        )
        half_lives = named_in(self.ema_profiles)
        profiles_are_good = all(map(_is_half_life, half_lives)) and len(set(map(float, half_lives))) == len(half_lives)
        check(
            profiles_are_good,
            "ema_profiles",
            self.ema_profiles,
            "different numbers of thousands of images from 0.001 to below 1000000, joined by commas, such as 5,20,80",
        )
        unknown = [name for name in self.diffaug_names if name not in DIFFAUG_NAMES]
        trackers = [name for name in self.trackers if name not in TRACKER_NAMES]
        check(not trackers, "track", self.track, f"names out of {', '.join(TRACKER_NAMES)}, joined by a comma")
        check(not unknown, "diffaug", self.diffaug, f"names out of {', '.join(DIFFAUG_NAMES)}, joined by commas")

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

    @property
    def diffaug_names(self) -> tuple[str, ...]:
        return named_in(self.diffaug)

    @property
    def profiles(self) -> dict[str, float]:
        """The averages beside the main one, shortest first: 'ema_5kimg' -> 5.0, the half-life in thousands of
        images."""
        return {f"ema_{kimg:.9g}kimg": kimg for kimg in sorted(map(float, named_in(self.ema_profiles)))}

    @property
    def trackers(self) -> tuple[str, ...]:
        return named_in(self.track)

    def with_numbers(self) -> "TrainConfig":
        """The same with batch 'auto' spelled out."""
        return self if self.batch != "auto" else replace(self, batch=32, batch_gpu="auto")

    def penalties(self, images_seen: int) -> tuple[float, float]:
        """Weights of R1 and R2 after `images_seen` images, without what adapts and what rollbacks add."""
        share = share_left(images_seen, self, self.total_steps * self.batch * self.d_steps)
        r1, r2 = (weight_of(weight, self.resolution, self.batch) for weight in (self.r1_penalty, self.r2_penalty))
        return share * r1, share * r2

    @property
    def evaluation_steps(self) -> int:
        """Steps between evaluations; 0: none."""
        return self.eval_every or (self.ckpt_every if self.scored_by_evaluation else 0)

    @property
    def evaluation_seconds(self) -> float:
        """Most that one may take: the other processes wait while the main one computes the scores."""
        return min(60 * self.eval_minutes, self.timeout / 2)

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
        cap = share if self.batch_gpu in (None, "auto") else self.batch_gpu
        parts = -(-share // cap)
        if share % parts:
            raise UserError(
                f"batch {self.batch} gives {share} images to each of {processes} processes, which batch_gpu "
                f"{self.batch_gpu} does not split evenly; choose a divisor of {share}"
            )
        return share, parts


def _is_half_life(text: str) -> bool:
    """Plain decimals, at most three after the point: they stand in names of files."""
    return bool(re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text)) and float(text) > 0

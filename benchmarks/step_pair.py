"""The two sides of B1 (step.py, step_on_gpu.py): this toolkit's Trainer and a plain loop, equal weights and images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState

from benchmarks.operations import Operations
from benchmarks.plain_loop import PlainLoop
from benchmarks.side_by_side import Different, Setting
from shards import create, toy_dishes
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import Batch
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import StepDraws
from toolkit.launching.launch import start_accelerator
from toolkit.networks.architecture import EARLIER
from toolkit.training.compiling import Mode
from toolkit.training.earlier import TRAINING
from toolkit.training.objective import Inputs
from toolkit.training.trainer import Trainer

NAME = "training step"
BASELINE = "a plain loop"
LAZY = 16
NEVER = 10**9
TOLERANCE = 1e-4
PARITY_RATE = 1e-6
"""Learning rate of the parity steps. Adam's first steps are signs of gradients, and rounding decides those near 0: at
the recipe's rates two correct loops part at once."""
SETTLED = 200
"""Power iterations at first. torch's hook iterates v before u, ours u before v, as torch's parametrization does; once
they have converged that is the same."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One size of the networks and the batch."""

    resolution: int
    base_ch: int
    batch: int
    strict: float | None = None
    """The ratios aimed at."""
    parity_steps: int = 10
    lazy: float | None = None

    def __str__(self) -> str:
        return f"{self.resolution} px, base_ch {self.base_ch}, batch {self.batch}"

    def config(self, data: Path, precision: str) -> ResolvedConfig:
        """configs/seed.yaml at this size: the options that the plain loop has too."""
        return ResolvedConfig(
            data=str(data), resolution=self.resolution, base_ch=self.base_ch, batch=self.batch, d_scales=1,
            mismatch_weight=0, r1_penalty=2, r1_interval=1, lr_g=5e-5, lr_d=1.5e-4, grad_clip=1, loss="hinge",
            r2_penalty=0, d_steps=1, ema_ramp=False, **EARLIER, **TRAINING,
            diffaug="color,translation,flip", workers=0, mixed_precision=precision,
        )  # fmt: skip


class Pair:
    """Ours and the plain loop with equal weights and images."""

    def __init__(self, point: Point, setting: Setting, precision: str = "no", compile: Mode = "no") -> None:
        self.point, self.setting = point, setting
        config = point.config(drawn_shards(setting.folder, point.resolution), precision)
        config = dataclasses.replace(config, compile=compile)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = start_accelerator(config)
        self.trainer = Trainer(config, accelerator, ShardSet(Path(config.data)))
        self.trainer.fetch()
        (self.batch,) = self.trainer.feed.take()[0]
        self.trainer.feed.close()
        self.trainer.feed = OneBatch(self.batch)
        self.trainer.unwrap(self.trainer.D).iterate(SETTLED)
        self.plain = PlainLoop(
            config, self.trainer.unwrap(self.trainer.G), self.trainer.unwrap(self.trainer.D), precision
        )
        self.plain_inputs = self.inputs(0)

    def inputs(self, step: int) -> tuple[Inputs, Inputs]:
        """What the trainer draws at this step for D's and for G's phase."""
        noise = StepDraws(self.trainer.config.seed, self.point.batch, step, 0)
        of_d = self.trainer.inputs(self.batch, noise, "D", "augment fake", shows_real=True)
        return of_d, self.trainer.inputs(self.batch, noise, "G", "augment for G", shows_real=False)

    def check_parity(self, steps: int) -> str:
        """Both losses over so many steps from the same weights. Raises Different."""
        rates = self.learning_rates({name: PARITY_RATE for name in "GD"})
        self.plain.iterations = "once a step"
        worst = 0.0
        for _ in range(steps):
            theirs = self.plain.step(*self.inputs(self.trainer.step_number))
            stats = self.trainer.step()
            worst = max(worst, *(abs(stats[f"loss_{n}"].item() - value) for n, value in zip("dg", theirs, strict=True)))
        self.plain.iterations = "each forward"
        self.learning_rates(rates)
        if not worst <= TOLERANCE:
            raise Different(f"losses of {steps} steps differ by {worst:.1e}, more than {TOLERANCE:.0e}")
        return f"losses of {steps} steps within {worst:.0e}"

    def learning_rates(self, rates: dict[str, float]) -> dict[str, float]:
        """Set those of both loops; returns what they were."""
        theirs, before = {"G": self.plain.optimizer_g, "D": self.plain.optimizer_d}, {}
        for name, rate in rates.items():
            for optimizer in (theirs[name], self.trainer.phases[name].optimizer):
                before[name] = optimizer.param_groups[0]["lr"]
                optimizer.param_groups[0]["lr"] = rate
        return before

    def ours(self, r1_interval: int) -> Callable[[], object]:
        """A step with R1 (interval 1) or without."""

        def work() -> None:
            self.trainer.config = dataclasses.replace(self.trainer.config, r1_interval=r1_interval)
            self.trainer.step()

        return work

    def operations(self, work: Callable[[], object], plain: bool) -> Operations:
        """Counted in one step, without the optimizers' and the average's."""
        with Operations() as counted:
            if plain:
                counted.without(self.plain.optimizer_g, "step")
                counted.without(self.plain.optimizer_d, "step")
            else:
                counted.without(self.trainer.ema, "update")
                for phase in self.trainer.phases.values():
                    counted.without(phase, "step")
            work()
        return counted


class OneBatch:
    """Stands where the trainer's feed is, and always gives the same images."""

    read, bad = 1, 0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def fetch(self, *arguments: object) -> None:
        pass

    def take(self) -> list[list[Batch]]:
        self.read += 1
        return [[self.batch]]


def drawn_shards(folder: Path, resolution: int, count: int = 128) -> Path:
    """Shards of drawn dishes, made once."""
    shards = folder / f"dishes-{resolution}"
    if not (shards / "manifest.json").exists():
        images = folder / f"images-{resolution}"
        toy_dishes.main(toy_dishes.ToyOptions(images, count, resolution))
        create.main(create.CreateOptions(images, shards, resolution, encoder="hashing"))
    return shards

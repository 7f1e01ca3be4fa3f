"""The training step: D's phase, G's phase, EMA. What surrounds it (logs, samples, checkpoints) is in run.py."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from toolkit import draws
from toolkit.config import TrainConfig
from toolkit.data.dataset import Batch, ShardDataset, batches
from toolkit.data.images import to_float
from toolkit.data.shard_reader import ShardSet
from toolkit.networks import diffaug, losses
from toolkit.networks.ema import EMA
from toolkit.networks.layers import power_iteration
from toolkit.networks.models import Discriminator, Generator
from toolkit.networks.perceptual import PerceptualDistance
from toolkit.phase import Phase
from toolkit.run_folder import checkpoint
from toolkit.run_folder.snapshot import restore_snapshot

Scalars = dict[str, Tensor]


class Trainer:
    """Networks, optimizers, average and data of one run; `step` is the recipe."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, shards: ShardSet) -> None:
        self.config, self.accelerator, self.shards = config, accelerator, shards
        self.device = accelerator.device
        share, self.parts = config.per_process(accelerator.num_processes)
        first = accelerator.process_index * share
        self.share = slice(first, first + share)
        self.dataset = ShardDataset(shards, config.seed, mismatch=config.mismatch_weight > 0)
        self._data: Iterator[list[Batch]] | None = None
        torch.manual_seed(draws.integer(2**62, config.seed, "initial weights"))  # equal on every process
        G, D = (kind(config).to(memory_format=torch.channels_last) for kind in (Generator, Discriminator))
        self.ema = EMA(
            G,
            config.ema_decay,
            config.ema_start,
            config.ema_ramp,
            config.ema_kimg and config.ema_kimg * 1000,
            config.batch,
        )
        self.ema.module.to(self.device)
        self.G, self.D = accelerator.prepare(G, D)
        self.phases = {"G": self._phase(self.G, config.lr_g), "D": self._phase(self.D, config.lr_d)}
        weights = Path(config.perceptual_weights) if config.perceptual_weights else None
        self.perceptual = PerceptualDistance(weights).to(self.device) if config.perceptual else None
        self.augment_width = diffaug.parameter_count(config.diffaug_names)
        self.step_number = 0  # optimizer steps of G done
        self.position = 0  # pictures consumed: the whole state of the data pipeline
        self.wandb_run_id: str | None = None

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint as if never stopped. Raises UserError if it is damaged or of another run's kind."""
        restore_snapshot(self, checkpoint.load(folder))

    def step(self) -> Scalars:
        """D's phase (`d_steps` times, each on fresh pictures), G's phase with D frozen, EMA. Returns scalars."""
        stats = {}
        for k in range(self.config.d_steps):
            micro_batches = self._next_batches()
            power_iteration(self.D)
            noise = draws.StepDraws(self.config.seed, self.config.batch, self.step_number, k)
            stats |= self._run_phase("D", self.discriminator_loss, micro_batches, noise)
        with frozen(self.D):
            stats |= self._run_phase("G", self.generator_loss, micro_batches, noise)
        if "grad_norm_g" in stats:  # an overflow in half precision skips the step, and the average with it
            self.ema.update(self.unwrap(self.G))
        self.step_number += 1
        return stats

    def _run_phase(self, name: str, loss_of: Callable, micro_batches: list[Batch], noise: draws.StepDraws) -> Scalars:
        """One optimizer step of one network on the sum of its micro-batches; the scalars are their means."""
        phase, stats = self.phases[name], {}
        for batch in micro_batches:
            with phase.accumulating(last=batch is micro_batches[-1]):
                loss, found = loss_of(batch, noise)
                phase.backward(loss / self.parts)
            stats = {key: stats.get(key, 0) + value.detach() / self.parts for key, value in found.items()}
        result = phase.step()
        return stats if result.skipped else stats | {f"grad_norm_{name.lower()}": result.gradient_norm}

    def discriminator_loss(self, batch: Batch, noise: draws.StepDraws) -> tuple[Tensor, Scalars]:
        """Adversarial and mismatched-caption terms on augmented pictures, R1 every `r1_interval` steps in one graph."""
        config = self.config
        r1_now = config.r1_penalty > 0 and self.step_number % config.r1_interval == 0
        with torch.no_grad():
            fake = self.G(self.z("z for D", batch, noise), batch.text)
        real = self.augment(to_float(batch.pictures), "augment real", batch, noise).requires_grad_(r1_now)
        # Two forwards, one backward: the real pass alone leaves half precision when R1 differentiates it twice.
        on_real = self.D(real, batch.text, batch.mismatched, fp32=r1_now)
        on_fake = self.D(self.augment(fake, "augment fake", batch, noise), batch.text)
        real_or_fake = losses.real_loss(on_real.logits, config.loss) + losses.fake_loss(on_fake.logits, config.loss)
        mismatch = losses.mismatch_loss(on_real.logits, on_real.mismatched, config.loss) * batch.differs
        loss = (real_or_fake + config.mismatch_weight * mismatch).mean()
        stats = {
            "loss_d": real_or_fake.mean(),
            "loss_mismatch": mismatch.mean(),
            "logit_real": on_real.logits.mean(),
            "logit_fake": on_fake.logits.mean(),
            "logit_mismatched": on_real.mismatched.mean(),
        }
        if r1_now:
            stats["r1"] = losses.r1_penalty(on_real.logits, real).mean()
            loss = loss + config.r1_penalty * config.r1_interval * stats["r1"]
        return loss, stats

    def generator_loss(self, batch: Batch, noise: draws.StepDraws) -> tuple[Tensor, Scalars]:
        """Adversarial term on augmented pictures, and the options: feature matching, perceptual distance."""
        config = self.config
        fake = self.G(self.z("z for G", batch, noise), batch.text)
        on_fake = self.D(self.augment(fake, "augment for G", batch, noise), batch.text)
        loss = losses.generator_loss(on_fake.logits, config.loss).mean()
        stats = {"loss_g": loss}
        if config.feature_matching:
            with torch.no_grad():
                real = self.augment(to_float(batch.pictures), "augment real", batch, noise)
                on_real = self.D(real, batch.text)
            stats["feature_matching"] = losses.feature_matching(on_real.features, on_fake.features)
            loss = loss + config.feature_matching * stats["feature_matching"]
        if self.perceptual:
            stats["perceptual"] = self.perceptual(fake, to_float(batch.pictures)).mean()
            loss = loss + config.perceptual * stats["perceptual"]
        return loss, stats

    def z(self, purpose: str, batch: Batch, noise: draws.StepDraws) -> Tensor:
        """[N, z_dim] for these rows of the global batch."""
        return noise.normal(purpose, batch.rows, self.config.z_dim).to(self.device)

    def augment(self, images: Tensor, purpose: str, batch: Batch, noise: draws.StepDraws) -> Tensor:
        u = noise.uniform(purpose, batch.rows, self.augment_width).to(self.device)
        return diffaug.augment(images, self.config.diffaug_names, u)

    def close(self) -> None:
        """Stop the data workers."""
        if self._data is not None:
            self._data.close()

    def unwrap(self, network: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(network)

    @torch.no_grad()
    def average_statistics(self) -> None:
        """Average batch-norm statistics over processes, each of which saw only its share. All processes call it."""
        if self.accelerator.num_processes > 1:
            for network in (self.unwrap(self.G), self.ema.module):
                for buffer in network.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(self.accelerator.reduce(buffer, reduction="mean"))

    def _next_batches(self) -> list[Batch]:
        if self._data is None:
            pin = self.device.type == "cuda"
            self._data = batches(
                self.dataset,
                self.position,
                self.config.batch,
                self.share,
                self.parts,
                self.config.workers,
                pin,
            )
        self.position += self.config.batch
        return [batch.to(self.device) for batch in next(self._data)]

    def _phase(self, network: nn.Module, lr: float) -> Phase:
        config = self.config
        optimizer = torch.optim.Adam(network.parameters(), lr, betas=(config.beta1, config.beta2), fused=True)
        return Phase(self.accelerator, network, optimizer, config.grad_clip)


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Without gradients for the network's own weights; gradients still flow through it. All or nothing under DDP."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)

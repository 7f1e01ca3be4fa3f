"""The training step: D's phase, G's phase, EMA. What surrounds it (logs, samples, checkpoints) is in run.py."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from toolkit import draws
from toolkit.adaptive import Adaptive
from toolkit.config import TrainConfig
from toolkit.data.dataset import Batch, ShardDataset
from toolkit.data.feed import Feed
from toolkit.data.images import to_float
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.networks import diffaug, losses
from toolkit.networks.ema import EMA
from toolkit.networks.layers import power_iteration
from toolkit.networks.models import Discriminator, Generator, Verdict
from toolkit.networks.perceptual import PerceptualDistance
from toolkit.phase import Phase
from toolkit.run_folder import checkpoint
from toolkit.run_folder.snapshot import restore_snapshot

Scalars = dict[str, Tensor]


class Trainer:
    """Networks, optimizers, average and data of one run; `step` is the recipe."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, shards: ShardSet) -> None:
        self.accelerator, self.shards = accelerator, shards
        self.device = accelerator.device
        self.configure(config)
        dataset = ShardDataset(shards, config.seed, mismatch=config.mismatch_weight > 0)
        shown = accelerator.is_main_process
        self.feed = Feed(dataset, config.batch, config.workers, self.device, config.max_bad, config.resident, shown)
        torch.manual_seed(draws.integer(2**62, config.seed, "initial weights"))  # equal on every process
        G, D = (kind(config).to(memory_format=torch.channels_last) for kind in (Generator, Discriminator))
        half_life = config.ema_kimg and config.ema_kimg * 1000
        self.ema = EMA(G, config.ema_decay, config.ema_start, config.ema_ramp, half_life, config.batch)
        self.ema.module.to(self.device)
        self.G, self.D = accelerator.prepare(_synchronised(G, config, accelerator), D)
        self.broken = torch.zeros((), device=self.device)
        self.phases = {"G": self._phase(self.G, config.lr_g), "D": self._phase(self.D, config.lr_d)}
        weights = Path(config.perceptual_weights) if config.perceptual_weights else None
        self.perceptual = PerceptualDistance(weights).to(self.device) if config.perceptual else None
        self.adaptive = Adaptive(config, config.d_steps, config.augment_p, config.batch)
        scaler = accelerator.scaler
        self.first_scale = None if scaler is None else scaler.state_dict()
        self.skipped = False  # whether the last step's gradients overflowed half precision
        self.step_number = 0  # optimizer steps of G done
        self.position = 0  # where the next picture is read: the whole state of the data pipeline
        self.left_out = 0  # of these: passed over by rollbacks, never seen
        self.attempt = 0  # how often the run went back after diverging
        self.rollbacks = 0  # those that count: each has changed learning rates and penalties
        self.wandb_run_id: str | None = None

    def configure(self, config: TrainConfig) -> None:
        """Take the config, and from it which rows of the global batch are this process's, in how many parts."""
        self.config = config
        share, self.parts = config.per_process(self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        self.share = slice(first, first + share)

    def resume(self, folder: Path) -> list[str]:
        """Go on from a checkpoint as if never stopped. Returns the options that have changed since, 'name old -> new'.

        Raises UserError if it is damaged or of another run's kind.
        """
        self.close()
        changed = restore_snapshot(self, checkpoint.load(folder))
        self.broken.zero_()
        self.apply_rollbacks()
        return changed

    def apply_rollbacks(self) -> None:
        """Learning rates as the rollbacks so far have changed them."""
        for name, lr in (("G", self.config.lr_g), ("D", self.config.lr_d)):
            for group in self.phases[name].optimizer.param_groups:
                group["lr"] = lr * self.config.rollback_lr**self.rollbacks

    def penalty_scale(self) -> float:
        """What R1 and R2 are multiplied by: the adaptive scale, and what rollbacks added."""
        return self.adaptive.r1_scale * self.config.rollback_r1**self.rollbacks

    def settings(self) -> dict[str, float]:
        """What may change during a run, for its log."""
        adaptive, scaler = self.adaptive, self.accelerator.scaler
        lr_g, lr_d = (self.phases[name].optimizer.param_groups[0]["lr"] for name in "GD")
        found = {"lr_g": lr_g, "lr_d": lr_d, "d_steps": adaptive.d_steps, "augment_p": adaptive.augment_p,
                 "r1_scale": self.penalty_scale(), "ema_decay": self.ema.decay()}  # fmt: skip
        found |= {"attempt": self.attempt} if self.attempt else {}
        return found if scaler is None else found | {"loss_scale": scaler.get_scale()}

    @property
    def images_seen(self) -> int:
        """Real pictures shown to D on the way to the present weights."""
        return self.position - self.left_out

    def fetch(self) -> None:
        """Load the pictures of the next step. Only here does a step wait for data, and it may be interrupted."""
        self.feed.fetch(self.position, self.share, self.parts, self.adaptive.d_steps)

    def step(self) -> Scalars:
        """D's phase (`d_steps` times, each on fresh pictures), G's phase with D frozen, EMA. Returns scalars."""
        self.fetch()
        read, bad = self.feed.read, self.feed.bad
        ready = self.feed.take()
        replaced = (self.feed.bad - bad) / (self.feed.read - read)
        stats = {"bad_samples": torch.full((), replaced, device=self.device)}
        for k, micro_batches in enumerate(ready):
            power_iteration(self.D)
            noise = draws.StepDraws(self.config.seed, self.config.batch, self.step_number, k)
            stats |= self._run_phase("D", self.discriminator_loss, micro_batches, noise)
            if "grad_norm_d" in stats:
                self._adapt(stats)
            self.position += self.config.batch
        # Without no_sync, DDP would expect gradients of D and exchange the next step's first micro-batch for nothing.
        with frozen(self.D), self.accelerator.no_sync(self.D):
            stats |= self._run_phase("G", self.generator_loss, micro_batches, noise)
        if "grad_norm_g" in stats:  # else half precision overflowed: a skipped step advances nothing
            self.ema.update(self.unwrap(self.G))
            self.step_number += 1
        if self.accelerator.scaler is not None:
            self.skipped = not {"grad_norm_d", "grad_norm_g"} <= stats.keys()
            stats["skipped"] = torch.full((), float(self.skipped), device=self.device)
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
        """Adversarial and mismatched-caption terms on augmented pictures; every `r1_interval` steps R1 and R2 in the
        same graph."""
        config = self.config
        penalised = self.step_number % config.r1_interval == 0
        r1_now, r2_now = penalised and config.r1_penalty > 0, penalised and config.r2_penalty > 0
        with torch.no_grad():
            fake = self.augment(self.G(self.z("z for D", batch, noise), batch.text), "augment fake", batch, noise)
        real = self.augment(to_float(batch.pictures), "augment real", batch, noise)
        # Two forwards, one backward: alone, each can leave half precision when a penalty differentiates it twice.
        on_real = self.D(real.requires_grad_(r1_now), batch.text, batch.mismatched, fp32=r1_now)
        on_fake = self.D(fake.requires_grad_(r2_now), batch.text, fp32=r2_now)
        adversarial = losses.discriminator_loss(on_real.logits, on_fake.logits, config.loss)
        mismatch = losses.mismatch_loss(on_real.logits, on_real.mismatched, config.loss) * batch.differs
        loss = (adversarial + config.mismatch_weight * mismatch).mean()
        stats = {"loss_d": adversarial.mean(), "loss_mismatch": mismatch.mean()} | _logit_statistics(on_real, on_fake)
        scale = self.penalty_scale() * config.r1_interval
        if r1_now:
            stats["r1"] = losses.gradient_penalty(on_real.logits, real).mean()
            loss = loss + config.r1_penalty * scale * stats["r1"]
        if r2_now:
            stats["r2"] = losses.gradient_penalty(on_fake.logits, fake).mean()
            loss = loss + config.r2_penalty * scale * stats["r2"]
        if config.lecam:
            anchors = self.adaptive.anchors.to(self.device)
            stats["lecam"] = losses.lecam_penalty(on_real.logits, on_fake.logits, tuple(anchors)).mean()
            loss = loss + config.lecam * stats["lecam"]
        return loss, stats

    def generator_loss(self, batch: Batch, noise: draws.StepDraws) -> tuple[Tensor, Scalars]:
        """Adversarial term on augmented pictures, and the options: feature matching, perceptual distance."""
        config = self.config
        fake = self.G(self.z("z for G", batch, noise), batch.text)
        matching = config.feature_matching > 0
        on_fake = self.D(self.augment(fake, "augment for G", batch, noise), batch.text, features=matching)
        on_real = None
        if matching or config.loss == "relativistic":
            with torch.no_grad():
                real = self.augment(to_float(batch.pictures), "augment real", batch, noise)
                on_real = self.D(real, batch.text, features=matching)
        loss = losses.generator_loss(on_fake.logits, on_real and on_real.logits, config.loss).mean()
        stats = {"loss_g": loss}
        if matching:
            stats["feature_matching"] = losses.feature_matching(on_real.features, on_fake.features)
            loss = loss + config.feature_matching * stats["feature_matching"]
        if self.perceptual:
            stats["perceptual"] = self.perceptual(fake, to_float(batch.pictures)).mean()
            loss = loss + config.perceptual * stats["perceptual"]
        return loss, stats

    def z(self, purpose: str, batch: Batch, noise: draws.StepDraws) -> Tensor:
        """[N, z_dim] for these rows of the global batch."""
        return self._moved(noise.normal(purpose, batch.rows, self.config.z_dim))

    def augment(self, images: Tensor, purpose: str, batch: Batch, noise: draws.StepDraws) -> Tensor:
        names, p = self.config.diffaug_names, self.adaptive.augment_p
        u = self._moved(noise.uniform(purpose, batch.rows, diffaug.parameter_count(names)))
        applied = None
        if p < 1:
            applied = self._moved(noise.uniform(f"{purpose}?", batch.rows, len(names))) < p
        return diffaug.augment(images, names, u, applied)

    def _moved(self, numbers: Tensor) -> Tensor:
        """On the device, without waiting for what it is doing."""
        return numbers.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Stop the data workers; the next step starts them again at `position`."""
        self.feed.close()

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

    @torch.no_grad()
    def fingerprint(self) -> Tensor:
        """int64 [3] on the CPU: exact sums over the bits of G's, D's and the average's weights."""
        networks = (self.unwrap(self.G), self.unwrap(self.D), self.ema.module)
        sums = [[p.view(torch.int32).sum(dtype=torch.int64) for p in network.parameters()] for network in networks]
        return torch.stack([torch.stack(parts).sum() for parts in sums]).cpu()

    def _adapt(self, stats: Scalars) -> None:
        """Show the adaptive quantities what D thinks of real and generated pictures, over all processes."""
        if self.config.adapts or self.config.lecam:
            seen = torch.stack([stats[name] for name in ("logit_real", "logit_fake", "real_sign", "fake_sign")])
            seen = self.accelerator.reduce(seen.float(), reduction="mean")
            self.adaptive.observe(seen[:2], seen[2:])

    def _phase(self, network: nn.Module, lr: float) -> Phase:
        config = self.config
        optimizer = torch.optim.Adam(network.parameters(), lr, betas=(config.beta1, config.beta2), fused=True)
        return Phase(self.accelerator, network, optimizer, config.grad_clip, self.broken)


def _logit_statistics(on_real: Verdict, on_fake: Verdict) -> Scalars:
    return {
        "logit_real": on_real.logits.mean(),
        "logit_fake": on_fake.logits.mean(),
        "logit_mismatched": on_real.mismatched.mean(),
        "real_sign": on_real.logits.sign().mean(),
        "fake_sign": on_fake.logits.sign().mean(),
    }


def _synchronised(G: Generator, config: TrainConfig, accelerator: Accelerator) -> nn.Module:
    """G with batch norm over all processes if asked for. Raises UserError where torch cannot do that."""
    if not config.sync_bn or accelerator.num_processes == 1:
        return G
    if accelerator.device.type != "cuda":
        raise UserError("sync_bn needs GPUs; on CPUs use --g_norm group, which no process count changes")
    return nn.SyncBatchNorm.convert_sync_batchnorm(G)


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Without gradients for the network's own weights; gradients still flow through it. All or nothing under DDP."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)

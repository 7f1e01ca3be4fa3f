"""The training step: D's phase, G's phase, averages. What surrounds it (logs, samples, checkpoints) is in run.py."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from toolkit import draws
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import Batch, ShardDataset
from toolkit.data.feed import Feed
from toolkit.data.pairs import caption_groups
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.networks import diffaug
from toolkit.networks.backbones import load_backbone
from toolkit.networks.clip_guidance import load_clip_guidance
from toolkit.networks.ema import EMA
from toolkit.networks.models import Discriminator, Generator
from toolkit.networks.perceptual import PerceptualDistance
from toolkit.run_folder import checkpoint
from toolkit.run_folder.snapshot import restore_snapshot
from toolkit.training import conditioning
from toolkit.training.adaptive import Adaptive
from toolkit.training.match_gate import CaptionPool, MatchGate, held_out
from toolkit.training.objective import Inputs, Objective, Scalars
from toolkit.training.optimizer_options import OptimizerOptions
from toolkit.training.phase import Phase
from toolkit.training.standing import StandingInputs, stand

Network = TypeVar("Network", bound=nn.Module)


class Trainer:
    """Networks, optimizers, average and data of one run; `step` is the recipe."""

    def __init__(self, config: ResolvedConfig, accelerator: Accelerator, shards: ShardSet) -> None:
        self.accelerator, self.shards = accelerator, shards
        self.device = accelerator.device
        self.configure(config)
        groups = caption_groups(shards) if config.pairs else None
        dataset = ShardDataset(shards, config.seed, config.mismatches, config.mismatch_cosine, groups)
        shown = accelerator.is_main_process
        self.feed = Feed(dataset, config.batch, config.workers, self.device, config.max_bad, config.resident, shown)
        frozen_weights, clip_weights, weights = (
            Path(path) if path else None
            for path in (config.frozen_weights, config.clip_guidance_weights, config.perceptual_weights)
        )
        # Before the seed: to build a pretrained network takes random numbers too.
        named = config.frozen_backbone
        backbone = load_backbone(named, frozen_weights, config.frozen_size) if named else None
        guidance = load_clip_guidance(shards.manifest.encoder, clip_weights) if config.clip_guidance else None
        torch.manual_seed(draws.integer(2**62, config.seed, "initial weights"))  # equal on every process
        G = Generator(config).to(memory_format=torch.channels_last)
        D = Discriminator(config, backbone).to(memory_format=torch.channels_last)
        self.ema = self._average(G, config.ema_kimg)
        self.profiles = {name: self._average(G, kimg) for name, kimg in config.profiles.items()}
        self.G, self.D = accelerator.prepare(_synchronised(G, config, accelerator), D)
        self.broken = torch.zeros((), device=self.device)
        self.phases = {"G": self._phase(self.G, config.lr_g), "D": self._phase(self.D, config.lr_d)}
        perceptual = PerceptualDistance(weights).to(self.device) if config.perceptual else None
        if guidance is not None:  # under the networks' autocast, and with no more of Accelerate than that
            guidance = accelerator.prepare_model(guidance, evaluation_mode=True)
        self.guided = guidance is not None  # CLIP has been in G's loss, now or before the run was resumed
        self.objective = Objective(config, self.G, self.D, perceptual, guidance)
        if config.compile != "no":
            self.objective.compile(config.compile)
        self.fresh = int(config.fresh_for_g and self.objective.shows_real)  # batches that G's phase has to itself
        self.captions = CaptionPool(shards, config.seed, self.device) if config.match_weight else None
        self.gate = MatchGate(config.batch, self.device)
        stands = config.standing_images if config.g_norm == "batch" else 0
        self.standing = StandingInputs(shards, stands, config.z_dim, config.seed) if stands else None
        self.adaptive = Adaptive(config, config.d_steps, config.augment_p, config.batch)
        scaler = accelerator.scaler
        self.first_scale = None if scaler is None else scaler.state_dict()
        self.skipped = False  # whether gradients of the last step overflowed half precision, in any of its phases
        self.step_number = 0  # optimizer steps of G done
        self.position = 0  # where the next image is read: the whole state of the data pipeline
        self.left_out = 0  # of these: passed over by rollbacks, never seen
        self.for_g = 0  # of these: read for G's phase, D was not trained on them
        self.attempt = 0  # how often the run went back after diverging
        self.rollbacks = 0  # those that count: each has changed learning rates and penalties
        self.wandb_run_id: str | None = None

    def configure(self, config: ResolvedConfig) -> None:
        """Take the config, and from it which rows of the global batch are this process's, in how many parts."""
        self.config = config
        share, self.parts = config.per_process(self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        self.share = slice(first, first + share)

    def resume(self, folder: Path) -> list[str]:
        """Go on from a checkpoint as if never stopped. Returns what has changed since: options, 'name old -> new', and
        averages that begin or are dropped.

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
                group["lr"] = lr * group["factor"] * self.config.rollback_lr**self.rollbacks

    def penalty_scale(self) -> float:
        """What R1 and R2 are multiplied by: the adaptive scale, and what rollbacks added."""
        return self.adaptive.r1_scale * self.config.rollback_r1**self.rollbacks

    def settings(self) -> dict[str, float]:
        """What may change during a run, for its log."""
        adaptive, scaler = self.adaptive, self.accelerator.scaler
        lr_g, lr_d = (lr * self.config.rollback_lr**self.rollbacks for lr in (self.config.lr_g, self.config.lr_d))
        found = {"lr_g": lr_g, "lr_d": lr_d, "d_steps": adaptive.d_steps, "augment_p": adaptive.augment_p,
                 "r1_scale": self.penalty_scale(), "ema_decay": self.ema.decay()}  # fmt: skip
        if self.config.r1_end != 1:
            found["r1_weight"] = self.config.penalties(self.images_seen)[0]
        if (share := conditioning.text_share(self.images_seen, self.config)) < 1:
            found["text_share"] = share
        found |= {"attempt": self.attempt} if self.attempt else {}
        return found if scaler is None else found | {"loss_scale": scaler.get_scale()}

    @property
    def images_seen(self) -> int:
        """Real images that D was trained on, on the way to the present weights."""
        return self.position - self.left_out - self.for_g

    def fetch(self) -> None:
        """Load the images of the next step. Only here does a step wait for data, and it may be interrupted."""
        self.feed.fetch(self.position, self.share, self.parts, self.adaptive.d_steps + self.fresh)

    def step(self) -> Scalars:
        """D's phase (`d_steps` times) and G's with D frozen, each on fresh images; averages. Returns scalars."""
        self.fetch()
        self.skipped = False
        read, bad = self.feed.read, self.feed.bad
        ready = self.feed.take()
        replaced = (self.feed.bad - bad) / (self.feed.read - read)
        stats = {"bad_samples": torch.full((), replaced, device=self.device)}
        for k, loaded in enumerate(ready):
            micro_batches = [self._mirrored(batch) for batch in loaded] if self.config.mirror else loaded
            noise = draws.StepDraws(self.config.seed, self.config.batch, self.step_number, k)
            if k < len(ready) - self.fresh:
                of_d = self._run_phase("D", self.discriminator_loss, micro_batches, noise)
                self.unwrap(self.D).iterate()
                if "grad_norm_d" in of_d:
                    self._adapt(of_d)
                    self._observe_match(of_d, generated=False)
            else:  # G's own
                self.for_g += self.config.batch
            self.position += self.config.batch
        # Without no_sync, DDP would expect gradients of D and exchange the next step's first micro-batch for nothing.
        with frozen(self.D), self.accelerator.no_sync(self.D):
            of_g = self._run_phase("G", self.generator_loss, micro_batches, noise)
        if "grad_norm_g" in of_g:  # else half precision overflowed: a skipped step advances nothing
            for average in self.averages:
                average.update(self.unwrap(self.G))
            self.step_number += 1
            self._observe_match(of_g, generated=True)
        if self.config.g_match_weight:
            stats["match_gate"] = self.gate.value()
        if self.accelerator.scaler is not None:
            stats["skipped"] = torch.full((), float(self.skipped), device=self.device)
        return stats | of_d | of_g

    def _mirrored(self, batch: Batch) -> Batch:
        """The same, each image flipped left to right or not by (seed, position); `self.position` is the first row's.

        Here, on the device, whatever the images were read from: what only looks at data never comes this way.
        """
        positions = (self.position + row for row in range(batch.rows.start, batch.rows.stop))
        flipped = torch.tensor([draws.integer(2, self.config.seed, "mirror", position) for position in positions])
        chosen = self._moved(flipped.bool()).view(-1, 1, 1, 1)
        return batch._replace(images=torch.where(chosen, batch.images.flip(3), batch.images))

    def _run_phase(self, name: str, loss_of: Callable, micro_batches: list[Batch], noise: draws.StepDraws) -> Scalars:
        """One optimizer step of one network on the sum of its micro-batches; the scalars are their means."""
        phase = self.phases[name]
        stats: Scalars = {}
        for batch in micro_batches:
            with phase.accumulating(last=batch is micro_batches[-1]):
                loss, found = loss_of(batch, noise)
                phase.backward(loss if self.parts == 1 else loss / self.parts)
            stats = {key: stats[key] + value.detach() if stats else value.detach() for key, value in found.items()}
        if self.parts > 1:
            stats = {key: value / self.parts for key, value in stats.items()}
        result = phase.step()
        self.skipped |= result.skipped
        return stats if result.skipped else stats | {f"grad_norm_{name.lower()}": result.gradient_norm}

    def discriminator_loss(self, batch: Batch, noise: draws.StepDraws) -> tuple[Tensor, Scalars]:
        """D's objective on one micro-batch; every `r1_interval` steps with R1 and R2."""
        config = self.config
        scale = 0.0 if self.step_number % config.r1_interval else self.penalty_scale() * config.r1_interval
        anchors = self.adaptive.anchors.to(self.device) if config.lecam else None
        inputs = self.inputs(batch, noise, "D", "augment fake", shows_real=True)
        r1, r2 = config.penalties(self.images_seen) if scale else (0.0, 0.0)
        heads = self.penalty_scale() * config.frozen_r1 if scale and config.frozen_backbone else 0.0
        return self.objective.discriminator(inputs, scale * r1, scale * r2, anchors, heads)

    def generator_loss(self, batch: Batch, noise: draws.StepDraws) -> tuple[Tensor, Scalars]:
        """G's objective on one micro-batch."""
        inputs = self.inputs(batch, noise, "G", "augment for G", self.objective.shows_real)
        return self.objective.generator(inputs)

    def inputs(self, batch: Batch, noise: draws.StepDraws, phase: str, fake: str, shows_real: bool) -> Inputs:
        """The micro-batch with its random numbers, drawn for a network's phase and for `fake` (and 'augment real')."""
        drawn = [noise.normal(f"z for {phase}", batch.rows, self.config.z_dim), self._for_augment(fake, batch, noise)]
        if shows_real:
            drawn.append(self._for_augment("augment real", batch, noise))
        first, *numbers = self._moved(torch.cat(drawn, dim=1)).split([columns.shape[1] for columns in drawn], dim=1)
        read = [diffaug.Numbers.read(columns, self.config.diffaug_names) for columns in numbers]
        text, mismatched = (self._conditioned(batch, noise, name, phase) for name in ("text", "mismatched"))
        for_fake, for_real = read[0], read[1] if shows_real else None
        found = Inputs(batch.images, text, mismatched, batch.differs, batch.text, first, for_real, for_fake)
        return self._with_captions(found, batch, noise, phase)

    def _with_captions(self, inputs: Inputs, batch: Batch, noise: draws.StepDraws, phase: str) -> Inputs:
        """The same with the captions among which each image's own is to be found, if a loss asks for them."""
        config = self.config
        if self.captions is None or (phase == "G" and not config.g_match_weight):
            return inputs
        vectors, numbers = self.captions.draw(config.match_captions, phase, *noise.counters)
        taken = (batch.text @ vectors.T >= config.mismatch_cosine) | (batch.numbers[:, None] == numbers)
        apart = None
        if phase == "D" and config.frozen_backbone:
            apart = self._moved(held_out(config.seed, batch.numbers.tolist()))
        gate = self.gate.value() * conditioning.text_share(self.images_seen, config) if phase == "G" else None
        return inputs._replace(others=vectors, taken=taken, held_out=apart, gate=gate)

    def _conditioned(self, batch: Batch, noise: draws.StepDraws, name: str, phase: str) -> Tensor:
        """The text vectors as the networks shall see them now."""
        text, config = getattr(batch, name), self.config
        if config.text_noise:
            drawn = self._moved(noise.normal(f"{name} noise for {phase}", batch.rows, text.shape[1]))
            text = conditioning.perturbed(text, drawn, config.text_noise)
        share = conditioning.text_share(self.images_seen, config)
        return text if share == 1 else share * text

    def _for_augment(self, purpose: str, batch: Batch, noise: draws.StepDraws) -> Tensor:
        names, p = self.config.diffaug_names, self.adaptive.augment_p
        u = noise.uniform(purpose, batch.rows, diffaug.parameter_count(names))
        if p >= 1:
            return u
        return torch.cat([u, noise.uniform(f"{purpose}?", batch.rows, len(names)) < p], dim=1)

    def _moved(self, numbers: Tensor) -> Tensor:
        """On the device, from pinned memory: without waiting for what it is doing."""
        return numbers.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else numbers

    def close(self) -> None:
        """Stop the data workers; the next step starts them again at `position`."""
        self.feed.close()

    @property
    def averages(self) -> list[EMA]:
        """The main one first, which makes all samples; then the profiles, which are only stored."""
        return [self.ema, *self.profiles.values()]

    def unwrap(self, network: Network) -> Network:
        return self.accelerator.unwrap_model(network)

    @torch.no_grad()
    def average_statistics(self) -> None:
        """Before G or an average is drawn from or saved: batch-norm statistics of G over all processes, each of which
        saw only its share, and of the averages by what each draws. All processes call it."""
        averages = [average.module for average in self.averages]
        if self.standing is not None:
            share = conditioning.text_share(self.images_seen, self.config)
            for network in averages:
                stand(network, self.standing, share)
            averages = []
        if self.accelerator.num_processes > 1:
            for network in (self.unwrap(self.G), *averages):
                for buffer in network.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(self.accelerator.reduce(buffer, reduction="mean"))

    @torch.no_grad()
    def fingerprint(self) -> Tensor:
        """int64 [2 + averages] on the CPU: exact sums over the bits of G's, D's and each average's weights."""
        networks = (self.unwrap(self.G), self.unwrap(self.D), *(average.module for average in self.averages))
        sums = [[p.view(torch.int32).sum(dtype=torch.int64) for p in network.parameters()] for network in networks]
        return torch.stack([torch.stack(parts).sum() for parts in sums]).cpu()

    def _adapt(self, stats: Scalars) -> None:
        """Show the adaptive quantities what D thinks of real and generated images, over all processes."""
        if self.config.adapts or self.config.lecam:
            seen = torch.stack([stats[name] for name in ("logit_real", "logit_fake", "real_sign", "fake_sign")])
            seen = self.accelerator.reduce(seen.float(), reduction="mean")
            self.adaptive.observe(seen[:2], seen[2:])

    def _observe_match(self, stats: Scalars, generated: bool) -> None:
        """Show the gate the matching loss of a batch, over all processes."""
        if self.config.g_match_weight:
            if generated:
                shown = [stats["loss_g_match"], torch.ones((), device=self.device)]
            else:
                shown = [stats.pop("match_reference"), stats.pop("match_measured")]
            total, measured = self.accelerator.reduce(torch.stack(shown).float(), reduction="mean")
            self.gate.observe(generated, total, measured)

    def _average(self, G: Generator, kimg: float | None) -> EMA:
        """With a half-life of `kimg` thousand images; None: with ema_decay."""
        config, half_life = self.config, kimg and kimg * 1000
        average = EMA(
            G, config.ema_decay, config.ema_start, config.ema_ramp, half_life, config.batch, config.ema_rampup
        )
        average.module.to(self.device)
        return average

    def _phase(self, network: nn.Module, lr: float) -> Phase:
        config = self.config
        groups = parameter_groups(self.unwrap(network), lr, config)
        optimizer = torch.optim.Adam(groups, lr, betas=(config.beta1, config.beta2), fused=True)
        return Phase(self.accelerator, network, optimizer, config.grad_clip, self.broken)


def parameter_groups(network: nn.Module, lr: float, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Parameters in the network's order, a new group wherever the factor of the learning rate changes.

    Checkpoints number Adam's moments in the order of the groups: so it is the network's, whatever the factors.
    """

    on_frozen = getattr(network, "frozen", None) is not None

    def factor(named: tuple[str, nn.Parameter]) -> float:
        if named[0].startswith("match.") and on_frozen:  # at the full rate it soon knows the dataset by heart
            return options.frozen_lr
        if not named[0].startswith("frozen.heads."):
            return 1.0
        return options.frozen_text_lr if ".text." in named[0] else options.frozen_lr

    return [
        {"params": [parameter for _, parameter in members], "lr": lr * of_group, "factor": of_group}
        for of_group, members in itertools.groupby(network.named_parameters(), factor)
    ]


def _synchronised(G: Generator, config: ResolvedConfig, accelerator: Accelerator) -> nn.Module:
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

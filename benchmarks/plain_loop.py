"""The training step that ours is compared with: the one of most GAN repositories, and of the project this began as.

Eager; D's images in three passes (real, generated, real again for R1, at every step); D's gradients computed in G's
step and thrown away; default Adam; the average as a dict of tensors; two numbers read from the device at each step.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_networks import PlainDiscriminator, PlainGenerator
from toolkit.config import ResolvedConfig
from toolkit.data.images import to_float
from toolkit.networks import diffaug
from toolkit.networks.models import Discriminator, Generator
from toolkit.training.objective import Inputs

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class PlainLoop:
    """Hinge loss, R1, clipping, Adam, EMA, with the options of `config` that a project of this kind has.

    `iterations` 'each forward' is what the hook does by itself; 'once a step' iterates where ours does, so that results
    can be compared.
    """

    def __init__(self, config: ResolvedConfig, G: Generator, D: Discriminator, precision: str = "no") -> None:
        self.config, self.precision, self.iterations = config, precision, "each forward"
        self.G, self.D = PlainGenerator(G), PlainDiscriminator(D)
        betas = (config.beta1, config.beta2)
        self.optimizer_g = torch.optim.Adam(self.G.parameters(), config.lr_g, betas)
        self.optimizer_d = torch.optim.Adam(self.D.parameters(), config.lr_d, betas)
        self.shadow = {name: value.detach().clone() for name, value in self.G.named_parameters()}
        self.device = next(self.G.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def step(self, for_d: Inputs, for_g: Inputs) -> tuple[float, float]:
        """D's step, G's step, average; returns both losses."""
        self.D.train(self.iterations == "each forward")
        with self.autocast():
            with torch.no_grad():
                fake = self.G(for_d.z, for_d.text)
            real = self.augment(to_float(for_d.images), for_d.for_real)
            on_real, on_fake = self.D(real, for_d.text), self.D(self.augment(fake, for_d.for_fake), for_d.text)
            adversarial = F.relu(1 - on_real.float()).mean() + F.relu(1 + on_fake.float()).mean()
        real = real.float().detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.D(real, for_d.text).mean(dim=1).sum(), real, create_graph=True)
        penalty = gradient.square().sum(dim=(1, 2, 3)).mean() / 2
        self.update(adversarial + self.config.r1_penalty * penalty, self.D, self.optimizer_d)
        self.D.train()
        with self.autocast():
            fake = self.augment(self.G(for_g.z, for_g.text), for_g.for_fake)
            loss_g = -self.D(fake, for_g.text).float().mean()
        self.update(loss_g, self.G, self.optimizer_g)
        self.scaler.update()
        decay = self.config.ema_decay
        for name, value in self.G.named_parameters():
            self.shadow[name] = decay * self.shadow[name] + (1 - decay) * value.detach()
        return adversarial.item(), loss_g.item()

    def update(self, loss: Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.grad_clip)
        self.scaler.step(optimizer)

    def augment(self, images: Tensor, numbers: diffaug.Numbers) -> Tensor:
        return diffaug.augment(images, self.config.diffaug_names, *numbers)

    def autocast(self) -> contextlib.AbstractContextManager:
        half = HALF.get(self.precision)
        return torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

"""Does it fit on the card? An estimate before training, and remedies once it did not (the trial: micro_batch.py)."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.config import ResolvedConfig
from toolkit.networks import diffaug, losses
from toolkit.networks.backbones import FrozenBackbone, materialised, weightless_backbone
from toolkit.networks.models import Discriminator, Generator, Look
from toolkit.networks.perceptual import LAYERS

GIB = 2**30
TEMPORARIES = 0.2
"""What the backward pass takes beside the saved activations, as a share of them. On a CPU (64 and 128 px, fp32 and
bf16) the allocator's peak in D's phase with R1 was the gradients plus 1.10 to 1.18 times the count; in G's, less."""
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process on its device; the activations grow linearly with the micro-batch."""

    micro_batch: int
    """Images held at once."""
    precision: str
    """'no', 'fp16' or 'bf16'."""
    networks: int
    """Weights and buffers of G and D, fp32 at any precision, and of the frozen networks that the options name."""
    average: int
    """The averaged G, and that of each further average."""
    moments: int
    """Adam's two per weight."""
    gradients: int
    """Of the larger network (each phase drops its own); of both, in DDP's buckets, with several processes."""
    d_phase: tuple[int, int]
    """Activations saved by D's phase, with R1 and R2 if they are on: (fixed, per image)."""
    g_phase: tuple[int, int]
    """Activations saved by G's phase: (fixed, per image)."""

    def activations(self, images: int) -> int:
        """Bytes of the larger phase for a micro-batch of `images`, with the backward pass's TEMPORARIES."""
        return round((1 + TEMPORARIES) * max(self._saved(images)))

    def _saved(self, images: int) -> tuple[int, int]:
        of_d, of_g = (fixed + each * images for fixed, each in (self.d_phase, self.g_phase))
        return of_d, of_g

    def total(self, images: int | None = None) -> int:
        """Bytes with a micro-batch of `images`, by default the config's."""
        held = self.networks + self.average + self.moments + self.gradients
        return held + self.activations(images or self.micro_batch)

    def most_images(self, room: int) -> int:
        """The largest micro-batch whose `total` is at most `room` bytes; 0 if not even one image's is."""
        saved = (room - self.total(1) + self.activations(1)) / (1 + TEMPORARIES)
        n = max(0, min(int((saved - fixed) // each) for fixed, each in (self.d_phase, self.g_phase)))
        return n + 1 if self.total(n + 1) <= room else n  # `activations` rounds

    def describe(self) -> str:
        """One line, in GiB."""
        n, (of_d, of_g) = self.micro_batch, self._saved(self.micro_batch)
        return (
            f"memory: about {gib(self.total())} GiB in each process at micro-batches of {n}, mixed precision "
            f"{self.precision}: networks {gib(self.networks)}, average {gib(self.average)}, Adam {gib(self.moments)}, "
            f"gradients {gib(self.gradients)}, activations {gib(self.activations(n))} of "
            f"{'D' if of_d >= of_g else 'G'}'s phase (without CUDA's context, workspaces and fragments)"
        )


def estimate(config: ResolvedConfig, processes: int, precision: str, encoder: str = "") -> MemoryEstimate:
    """What one of `processes` processes needs at `precision` ('no', 'fp16', 'bf16'). Computes and allocates nothing.

    `encoder`, the name of the shards', is needed for `clip_guidance` alone, whose CLIP is not counted without.

    Activations are the distinct storages that the forward passes of a phase, and the differentiable backward pass of
    R1 and R2, save for the backward pass: counted on fake tensors at 4 and 8 images (whole groups of minibatch_std),
    linear elsewhere. On a CPU they equal those of a real step (tests/test_memory.py), to which TEMPORARIES are added.
    Not counted is what a GPU adds: CUDA's context, cuDNN's workspaces, what its allocator holds but cannot use. None
    of it was measured on a GPU.
    Approximated at half precision: autocast's rules are those of a CPU. Convolutions and linear layers, nearly
    everything, are cast alike on a GPU. D's pass over real images is fp32 when R1 is on, and the one over generated
    images when R2 is, as in the step itself; the estimate is of those steps.
    Without batch_gpu the whole share is held at once. Raises UserError if the batch does not divide.
    """
    share, parts = config.per_process(processes)
    # On the meta device: libraries read tensors as they build a network, which fake ones do not allow.
    backbone = weightless_backbone(config.frozen_backbone, config.frozen_size) if config.frozen_backbone else None
    guided = config.clip_guidance and encoder not in ("", "hashing")
    guide = weightless_backbone(f"open_clip/{encoder}") if guided else None
    with FakeTensorMode():
        rehearsal = _Rehearsal(config, precision, backbone and materialised(backbone), guide and materialised(guide))
        G, D = ([*network.parameters()] for network in (rehearsal.G, rehearsal.D))
        networks, average = _bytes(rehearsal.held()), _bytes([*G, *rehearsal.G.buffers()])
        average *= 1 + len(config.profiles)
        phases = [_line(loss_of, rehearsal.held()) for loss_of in (rehearsal.d_loss, rehearsal.g_loss)]
    gradients = _bytes(G + D) if processes > 1 else max(_bytes(G), _bytes(D))
    return MemoryEstimate(share // parts, precision, networks, average, 2 * _bytes(G + D), gradients, *phases)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory ran out; cuDNN, cuBLAS and the CPU's allocator say so in errors of their own."""
    texts = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    own = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return own or isinstance(error, torch.OutOfMemoryError)


def explain_out_of_memory(config: ResolvedConfig, device: torch.device) -> str:
    """One line for a UserError: how much was allocated of how much, and remedies with values for this config."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share, parts = config.per_process(processes)
    micro = share // parts
    smaller = max((n for n in range(1, micro // 2 + 1) if share % n == 0), default=0)
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    remedies = [f"--batch_gpu {smaller}"] if smaller else []
    if precision == "no" and device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        remedies.append(f"--mixed_precision {'bf16' if bf16 else 'fp16'}")
    remedies += ["--d_scales 1 (in a new run)"] if config.d_scales > 1 else []
    remedies += [f"--base_ch {config.base_ch // 2} (in a new run)"] if config.base_ch > 1 else []
    remedies += [f"--resolution {config.resolution // 2} (with shards of that size)"] if config.resolution > 16 else []
    images = "a single image" if micro == 1 else f"{micro} images at once"
    return f"out of memory on {_usage(device)} with {images}; try {' or '.join(remedies[:3])}"


def gib(size: float) -> str:
    """Bytes as GiB: '0.04', '3.2', '14.6'."""
    return f"{size / GIB:.{1 if size >= GIB else 2}f}"


def _usage(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the {device.type.upper()}"
    peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f"{device} ({gib(peak)} of {gib(whole)} GiB were allocated)"


class _Rehearsal:
    """Both phases' losses as `Trainer` computes them, but for what takes no memory: weights of terms, statistics."""

    def __init__(
        self, config: ResolvedConfig, precision: str, backbone: FrozenBackbone | None, guide: FrozenBackbone | None
    ) -> None:
        self.config, self.precision, self.guide = config, precision, guide
        self.G, self.D = Generator(config), Discriminator(config, backbone)
        self.frozen = [network for network in (backbone, guide) if network is not None]
        self.vgg = _perceptual_layers() if config.perceptual else nn.Sequential()

    def held(self) -> list[Tensor]:
        """Weights and buffers: they are there between the steps too."""
        networks = (self.G, self.D, self.vgg, *self.frozen)
        return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]

    def autocast(self) -> contextlib.AbstractContextManager:
        """What Accelerate puts round the networks; their results leave it as fp32."""
        return torch.autocast("cpu", HALF[self.precision]) if self.precision in HALF else contextlib.nullcontext()

    def d_loss(self, images: int) -> Tensor:
        config, text = self.config, self._text(images)
        both = torch.zeros(2 * images, 3, config.resolution, config.resolution).chunk(2)  # augmented together
        heads = config.frozen_backbone and config.frozen_r1
        looks = [
            Look(
                images,
                text,
                second,
                penalised=weight > 0,
                heads_penalised=bool(heads),
                caption=text,
                others=self._others() if second is not None else None,
            )
            for images, second, weight in zip(both, (text, None), config.penalties(0), strict=True)
        ]
        for look in looks:
            look.images.requires_grad_(look.penalised)
        with self.autocast():
            verdicts = self.D(*looks)
        real, fake = (verdict.logits.float() for verdict in verdicts)
        pairs = [
            (found[:, : config.d_scales], look.images)
            for found, look in zip((real, fake), looks, strict=True)
            if look.penalised
        ]
        penalty = sum((losses.gradient_penalty(*pair).mean() for pair in pairs), torch.zeros(()))
        for verdict in verdicts:
            penalty = penalty if verdict.heads_penalty is None else penalty + verdict.heads_penalty.mean()
        return losses.discriminator_loss(real, fake, config.loss, config.column_split).mean() + penalty

    def g_loss(self, images: int) -> Tensor:
        config, text = self.config, self._text(images)
        self.D.requires_grad_(False)
        with self.autocast():
            fake = self.G(torch.zeros(images, config.z_dim), text).float()
            others = self._others() if config.g_match_weight else None
            look = Look(self._augmented(fake), text, features=config.feature_matching > 0, caption=text, others=others)
            (verdict,) = self.D(look)
        loss = losses.generator_loss(verdict.logits.float(), verdict.logits.detach().float(), config.loss).mean()
        if config.feature_matching:
            features = tuple(map.float() for map in verdict.features)
            loss = loss + losses.feature_matching(tuple(map.detach() for map in features), features)
        if config.perceptual:
            loss = loss + self._perceptual(fake)
        if self.guide is not None:
            with self.autocast():
                loss = loss + self.guide.network(self.guide.input(fake)).float().square().mean()
        self.D.requires_grad_(True)
        return loss

    def _perceptual(self, fake: Tensor) -> Tensor:
        x, distance = (fake + 1) / 2 - torch.zeros(3, 1, 1), torch.zeros(())
        for i, layer in enumerate(self.vgg):
            x = layer(x)
            if i in LAYERS:
                distance = distance + (x - x.detach()).abs().mean()
        return distance

    def _others(self) -> Tensor | None:
        """The captions among which an image's own is to be found, if it is."""
        return self._text(self.config.match_captions) if self.config.match_weight else None

    def _text(self, count: int) -> Tensor:
        return torch.zeros(count, self.config.cond_dim)

    def _augmented(self, images: Tensor) -> Tensor:
        config, names = self.config, self.config.diffaug_names
        some = config.augment_p < 1 or config.adaptive_augment
        applied = torch.ones(len(images), len(names), dtype=torch.bool) if some else None
        return diffaug.augment(images, names, torch.zeros(len(images), diffaug.parameter_count(names)), applied)


def _perceptual_layers() -> nn.Sequential:
    import torchvision  # a second of import that configs without this loss should not pay

    return torchvision.models.vgg16(init_weights=False).features[: LAYERS[-1] + 1].requires_grad_(False)


def _line(loss_of: Callable[[int], Tensor], held: list[Tensor]) -> tuple[int, int]:
    four, eight = (saved_bytes(functools.partial(loss_of, n), held) for n in (4, 8))
    return 2 * four - eight, (eight - four) // 4


def saved_bytes(forward: Callable[[], object], held: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that `forward` saves for a backward pass, without those of `held` tensors."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # kept: another one could otherwise get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    known = {tensor.untyped_storage()._cdata for tensor in held}
    return sum(storage.nbytes() for address, storage in storages.items() if address not in known)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

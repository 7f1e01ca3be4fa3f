"""From a checkpoint to pictures: load the averaged generator, draw with seeds."""

from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit import draws
from toolkit.data.images import to_uint8
from toolkit.errors import UserError
from toolkit.networks.inference import FoldedGenerator
from toolkit.networks.models import Generator
from toolkit.run_folder.best import best_checkpoint
from toolkit.run_folder.checkpoint import (
    GENERATOR,
    MANIFEST,
    GeneratorFile,
    find_problem,
    load_generator_file,
    newest_valid,
)


class TrainedGenerator:
    """A generator ready to draw, with what it was trained on."""

    def __init__(self, file: GeneratorFile, name: str, device: str | torch.device = "cpu") -> None:
        self.config, self.identity, self.step, self.name = file.config, file.identity, file.step, name
        self.guided = file.guided
        with torch.device("meta"):  # takes no memory, whatever a config promises that the file does not hold
            self.network = Generator(file.config)
        try:
            self.network.load_state_dict(file.tensors, assign=True)
        except RuntimeError as error:
            raise UserError(f"{name}: the weights do not fit their config ({str(error).splitlines()[0]})") from None
        self.network.modulation.reset_identity(self.network.norms())
        self.network.eval().requires_grad_(False).float().to(device)
        self._folded: FoldedGenerator | None = None

    def sample(self, text: Tensor, seeds: list[int], batch: int = 32) -> Tensor:
        """text [N, cond_dim] unit length, N seeds -> uint8 [N, 3, R, R] on the CPU.

        Picture i depends on row i only, but for rounding: another `batch` may move single pixels by one level.
        """
        self._folded = self._folded or FoldedGenerator(self.network)
        return sample(self._folded, draws.sample_noise(seeds, self.config.z_dim), text, batch)


@torch.inference_mode()
def sample(network: nn.Module, z: Tensor, text: Tensor, batch: int = 32) -> Tensor:
    """z [N, z_dim], text [N, cond_dim] -> uint8 [N, 3, R, R] on the CPU, `batch` at a time. `network` in eval mode."""
    device = next(network.parameters()).device
    chunks = zip(z.split(batch), text.split(batch), strict=True)
    return torch.cat([to_uint8(network(zs.to(device), texts.to(device))).cpu() for zs, texts in chunks])


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> TrainedGenerator:
    """`path`: a checkpoint folder, a run folder (its newest valid checkpoint), RUN/best (the one with the best score
    during training) or a generator.safetensors."""
    path = Path(path)
    if path.name == "best" and not path.exists():
        path = best_checkpoint(path.parent)
    if path.is_file():
        return TrainedGenerator(load_generator_file(path), str(path), device)
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}; give a ckpt_* folder, a run folder or a {GENERATOR}")
    if not (path / GENERATOR).is_file():
        newest, _ = newest_valid(path)
        if newest is None:
            raise UserError(f"{path} holds no valid checkpoint (ckpt_* folder)")
        path = newest
    elif (path / MANIFEST).is_file() and (problem := find_problem(path, (GENERATOR,))):
        raise UserError(f"checkpoint {path}: {problem}")  # without a manifest somebody copied the generator alone
    return TrainedGenerator(load_generator_file(path / GENERATOR), str(path), device)

"""From a checkpoint to images: load the averaged generator, draw with seeds."""

from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit import draws
from toolkit.data.images import to_uint8
from toolkit.errors import UserError
from toolkit.inference.folding import FoldedGenerator
from toolkit.networks.models import Generator
from toolkit.run_folder.best import best_checkpoint
from toolkit.run_folder.checkpoint import (
    GENERATOR,
    MANIFEST,
    PROFILE,
    GeneratorFile,
    find_problem,
    load_generator_file,
    newest_valid,
)


class TrainedGenerator:
    """A generator ready to draw, with what it was trained on."""

    def __init__(self, file: GeneratorFile, name: str, device: str | torch.device = "cpu") -> None:
        self.config, self.identity, self.step, self.name = file.config, file.identity, file.step, name
        self.guided, self.average = file.guided, file.average
        with torch.device("meta"):  # takes no memory, whatever a config promises that the file does not hold
            self.network = Generator(file.config)
        try:
            self.network.load_state_dict(file.tensors, assign=True)
        except RuntimeError as error:
            raise UserError(f"{name}: the weights do not fit their config ({str(error).splitlines()[0]})") from None
        self.network.modulation.reset_identity(self.network.norms())
        self.network.eval().requires_grad_(False).float().to(device)
        self._folded: FoldedGenerator | None = None

    def sample(self, text: Tensor, seeds: list[int], batch: int = 32, truncation: float = 1.0) -> Tensor:
        """text [N, cond_dim] unit length, N seeds -> uint8 [N, 3, R, R] on the CPU.

        Image i depends on row i only, but for rounding: another `batch` may move single pixels by one level.
        `truncation`: see `truncated`.
        """
        self._folded = self._folded or FoldedGenerator(self.network)
        return sample(self._folded, truncated(draws.sample_noise(seeds, self.config.z_dim), truncation), text, batch)


def truncated(z: Tensor, psi: float) -> Tensor:
    """Noise [N, z_dim] -> psi z: each image is drawn nearer to the middle of its prompt (psi < 1), or farther off.

    G's first layer reads z linearly beside the text, and the mean of z is 0. So what it makes of psi z is exactly
    w' = mean + psi (w - mean) with w = w(z, text) and mean = E_z w = w(0, text): the truncation of Karras et al. 2019
    (arXiv 1812.04948, appendix B; first Marchesi 2017, arXiv 1706.00082) with a mean of each prompt's own, which needs
    no estimating. Brock et al. 2019 (arXiv 1809.11096, section 3.1) draw anew what is large in z instead.
    """
    return z if psi == 1 else z * psi


@torch.inference_mode()
def sample(network: nn.Module, z: Tensor, text: Tensor, batch: int = 32) -> Tensor:
    """z [N, z_dim], text [N, cond_dim] -> uint8 [N, 3, R, R] on the CPU, `batch` at a time. `network` in eval mode."""
    device = next(network.parameters()).device
    chunks = zip(z.split(batch), text.split(batch), strict=True)
    return torch.cat([to_uint8(network(zs.to(device), texts.to(device))).cpu() for zs, texts in chunks])


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> TrainedGenerator:
    """`path`: a checkpoint folder, a run folder (its newest valid checkpoint), RUN/best (the one with the best score
    during training), a generator.safetensors or another average's file.

    What stands in a manifest beside it is verified. Raises UserError.
    """
    path = Path(path)
    if path.is_file():
        if path.name == GENERATOR or PROFILE.fullmatch(path.name):
            _verify(path)
        return TrainedGenerator(load_generator_file(path), str(path), device)
    folder = find_checkpoint(path)
    return TrainedGenerator(load_generator_file(folder / GENERATOR), str(folder), device)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a folder of `load_generator` stands for, its generator verified. Raises UserError."""
    if path.name == "best" and not path.exists():
        path = best_checkpoint(path.parent)
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}; give a ckpt_* folder, a run folder or a {GENERATOR}")
    if (path / GENERATOR).is_file():
        _verify(path / GENERATOR)
        return path
    newest, _ = newest_valid(path)
    if newest is None:
        raise UserError(f"{path} holds no valid checkpoint (ckpt_* folder)")
    return newest


def _verify(file: Path) -> None:
    if (file.parent / MANIFEST).is_file() and (problem := find_problem(file.parent, (file.name,))):
        raise UserError(f"checkpoint {file.parent}: {problem}")  # without a manifest somebody copied it alone

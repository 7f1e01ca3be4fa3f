"""What evaluation tests score: little images, shards by hand, an untrained run, a network that notices rounding."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from toolkit.data.shard_format import Manifest
from toolkit.data.tar_index import ShardFile, index_tar
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.inference.sampling import TrainedGenerator, load_generator
from toolkit.networks.architecture import ModelConfig
from toolkit.networks.models import Generator
from toolkit.run_folder.checkpoint import GeneratorFile, Snapshot, save


def write_images(folder: Path, count: int, size: tuple[int, int] = (24, 24), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        (folder / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"class{i % 3}" / f"{i:04d}.png")
    return folder


def write_shards(folder: Path, count: int, identity: EncoderIdentity | None = None) -> Path:
    """One tar, by hand: image i has the red level i and the caption 'dish i'."""
    folder.mkdir()
    encoder = HashingEncoder()
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for i in range(count):
            png, npy = io.BytesIO(), io.BytesIO()
            Image.new("RGB", (16, 16), (i, 0, 0)).save(png, format="PNG")
            np.save(npy, encoder.encode([f"dish {i}"]).numpy().astype(np.float16))
            for suffix, data in (("png", png.getvalue()), ("txt", b"dish %d" % i), ("npy", npy.getvalue())):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    tar_path = folder / "shard-00000.tar"
    np.save(folder / "index.npy", index_tar(tar_path, 0))
    shard = ShardFile(tar_path.name, count, tar_path.stat().st_size, file_sha256(tar_path))
    identity = identity or EncoderIdentity.of(encoder)
    Manifest(count, count, 16, identity, (shard,), file_sha256(folder / "index.npy"), {}).save(folder)
    return folder


def untrained(resolution: int = 16, base_ch: int = 4) -> Generator:
    """A generator of random weights, the same each time, as training lays it out."""
    torch.manual_seed(0)
    network = Generator(ModelConfig(resolution=resolution, base_ch=base_ch, z_dim=8, d_scales=1))
    return network.to(memory_format=torch.channels_last)


def write_run(run: Path, resolution: int = 16, base_ch: int = 4) -> Path:
    """`untrained`, saved as training saves it."""
    config = ModelConfig(resolution=resolution, base_ch=base_ch, z_dim=8, d_scales=1)
    tensors = {name: tensor.contiguous() for name, tensor in untrained(resolution, base_ch).state_dict().items()}
    file = GeneratorFile(tensors, config, EncoderIdentity.of(HashingEncoder()), 1)
    save(run, Snapshot(file, {}, {}, {}), keep=0)
    return run


class Sensitive(nn.Module):
    """What G draws, times a million and around a circle, turned by the batch's mean.

    So another rounding of the last bit shows, and so does whatever else is in the batch.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        images = self.network(z, text)
        return torch.sin(1e6 * images + z.mean() + 100 * text.std())


def load_sensitive(path: Path, device: torch.device) -> TrainedGenerator:
    """A checkpoint's generator, made sensitive."""
    generator = load_generator(path, device)
    generator.network = Sensitive(generator.network)
    return generator


def images_of(source, batch: int = 5) -> torch.Tensor:
    return torch.cat(list(source.batches(batch)))

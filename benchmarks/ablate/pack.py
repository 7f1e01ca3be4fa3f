"""What a machine without network and disk needs for an ablation, made small; used by benchmarks/gpu_quality.sh.

python -m benchmarks.ablate.pack shards SOURCE OUT SIZE QUALITY   the same samples, smaller
python -m benchmarks.ablate.pack weights IN.pth OUT.safetensors   Inception in half precision
python -m benchmarks.ablate.pack unpack IN.safetensors OUT.pth    and back
python -m benchmarks.ablate.pack best OUT TARGET                  the best variant's averaged generator
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.ablate.images import generator_file
from benchmarks.ablate.results import read
from benchmarks.ablate.table import ranked
from toolkit.data.dataset import read_decoded
from toolkit.data.images import to_pil
from toolkit.data.shard_format import INDEX_NAME, Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import ShardFile, index_tar
from toolkit.durable import file_sha256
from toolkit.errors import UserError

LARGEST = 60_000_000
"""Bytes of a generator that is handed back in single precision."""


def pack_shards(source: Path, out: Path, size: int, quality: int) -> Path:
    """One tar of the same samples in the same order, images as JPEG of `size` pixels, captions and vectors as they
    are. Raises UserError for images that would have to be enlarged."""
    shards = ShardSet(source)
    if shards.manifest.resolution < size:
        raise UserError(f"{source} holds images of {shards.manifest.resolution} px, too small for {size}")
    out.mkdir(parents=True)
    path = out / "shard-00000.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(len(shards)):
            sample, image = read_decoded(shards, number)
            jpeg, vectors = io.BytesIO(), io.BytesIO()
            small = to_pil(image).resize((size, size), Image.Resampling.LANCZOS)
            small.save(jpeg, "JPEG", quality=quality, optimize=True)
            np.save(vectors, sample.vectors.numpy().astype(np.float16))
            text = "\n".join(sample.captions).encode()
            for suffix, data in (("jpg", jpeg.getvalue()), ("txt", text), ("npy", vectors.getvalue())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    np.save(out / INDEX_NAME, index_tar(path, 0))
    shard = ShardFile(path.name, len(shards), path.stat().st_size, file_sha256(path))
    built = {"packed_from": shards.manifest.fingerprint, "size": size, "quality": quality}
    Manifest(
        len(shards), shards.manifest.distinct_captions, size, shards.manifest.encoder, (shard,),
        file_sha256(out / INDEX_NAME), built,
    ).save(out)  # fmt: skip
    return out


def pack_weights(source: Path, out: Path) -> None:
    """Matrices in half precision, vectors as they are; of tensors that are all zero (partial files) the shape alone.

    Raises UserError where half precision overflows.
    """
    state, zeros = torch.load(source, map_location="cpu", weights_only=True), {}
    kept = {}
    for name, values in state.items():
        if values.ndim and not values.any():
            zeros[name] = list(values.shape)
            continue
        kept[name] = (values.half() if values.ndim > 1 else values).contiguous()
        if not kept[name].isfinite().all():
            raise UserError(f"{source}: {name} does not fit into half precision")
    save_file(kept, out, {"zeros": json.dumps(zeros)})


def unpack_weights(source: Path, out: Path) -> None:
    """A state dict in single precision, as `--score_weights` reads it."""
    with safe_open(source, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        zeros = json.loads(file.metadata()["zeros"])
    state = {name: values.float() if values.is_floating_point() else values for name, values in state.items()}
    torch.save(state | {name: torch.zeros(shape) for name, shape in zeros.items()}, out)


def pack_best(out: Path, target: Path) -> str:
    """The first seed's generator of the best variant, the control among them; in half precision if it is large.
    Returns the variant's name. Raises UserError if there is none."""
    results = read(out)
    for name in [*best_first(results), results.grid["control"]]:
        for run in results.of(name):
            if file := generator_file(out, name, run["seed"]):
                _copy(file, target)
                return name
    raise UserError(f"{out} holds no generator of a finished run")


def best_first(results) -> list[str]:
    """With the control at its place."""
    neutral = type(results)({**results.grid, "control": ""}, results.runs)
    return ranked(neutral)


def _copy(file: Path, target: Path) -> None:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        about = opened.metadata()
    if file.stat().st_size > LARGEST:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(tensors, target, about)


def main(arguments: list[str]) -> None:
    what, *rest = arguments or [""]
    if what == "shards" and len(rest) == 4:
        out = pack_shards(Path(rest[0]), Path(rest[1]), int(rest[2]), int(rest[3]))
        print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 2**20:.1f} MiB")
    elif what == "weights" and len(rest) == 2:
        pack_weights(Path(rest[0]), Path(rest[1]))
    elif what == "unpack" and len(rest) == 2:
        unpack_weights(Path(rest[0]), Path(rest[1]))
    elif what == "best" and len(rest) == 2:
        print(f"best: {pack_best(Path(rest[0]), Path(rest[1]))}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"pack: {error}")

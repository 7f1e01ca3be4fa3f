"""Images for benchmarks: somebody's photos, or drawn ones that are as heavy to decode."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate

from benchmarks.side_by_side import Setting
from toolkit.data.decoding import SUFFIXES, fit_square
from toolkit.data.images import to_pil, to_uint8
from toolkit.errors import UserError

SCALES = ((4, 0.45), (16, 0.22), (64, 0.11), (256, 0.055), (512, 0.02))
"""Cells across and their contrast: half of it at each quarter of the size, near the 1/f spectrum of photos (Field 1987,
"Relations between the statistics of natural images and the response properties of cortical cells"). As JPEG of quality
95 they take 100 kB at 512 px and 11.5 kB at 128 px, where photos of food take 9 to 14."""


def sized_images(setting: Setting, count: int, size: int) -> Iterator[Image.Image]:
    """`count` different RGB images of `size` x `size` pixels. Raises UserError if there are fewer photos."""
    if setting.photos is None:
        yield from (draw(number, size) for number in range(count))
        return
    files = sorted(path for path in setting.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < count:
        raise UserError(f"{setting.photos} holds {len(files)} images, this benchmark takes {count}")
    for file in files[:: len(files) // count][:count]:
        yield fit_square(Image.open(file).convert("RGB"), size)


def fresh_folder(setting: Setting, name: str) -> Path:
    """A new one in the benchmarks' folder, whatever an earlier run has left there."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=setting.folder))


def draw(number: int, size: int) -> Image.Image:
    """Clouds within clouds, another sky for every number."""
    generator = torch.Generator().manual_seed(number)
    clouds = torch.zeros(1, 3, 1, 1)
    for cells, contrast in SCALES:
        if cells > size:
            break
        clouds = interpolate(clouds, (cells, cells), mode="bilinear", align_corners=False)
        clouds += contrast * torch.randn(1, 1, cells, cells, generator=generator)  # mostly light, as in photos
        if cells <= 64:
            clouds += contrast / 2 * torch.randn(1, 3, cells, cells, generator=generator)
    return to_pil(to_uint8(interpolate(clouds, (size, size), mode="bilinear", align_corners=False)[0]))

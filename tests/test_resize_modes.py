"""What is stored of an image, against pixels computed by hand or by Pillow alone; and what is left out, by name."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image, ImageCms

from shards.building.stored_images import ImageRules, store_image
from shards.create import CreateOptions
from tests.builds import build, pattern, skipped
from toolkit.data.dataset import read_decoded
from toolkit.data.decoding import decode_pixels
from toolkit.errors import UserError

RNG = np.random.default_rng(3)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def with_captions(folder: Path) -> Path:
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text("an image\n")
    return folder


def stored(image: Image.Image, tmp_path: Path, **options) -> np.ndarray:
    """The square that a build keeps of one image, as uint8 [size, size, 3]."""
    folder = tmp_path / "in"
    folder.mkdir()
    image.save(folder / "a.png")
    shards = build(with_captions(folder), tmp_path / "out", **{"format": "png"} | options)
    return decode_pixels(shards.read(0).image)


def halves(width: int, height: int) -> Image.Image:
    """Red left, blue right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("size", [(32, 8), (8, 32), (48, 16)])
def test_pad_keeps_the_aspect_in_the_middle_of_the_background(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    found = stored(Image.new("RGB", size, RED), tmp_path, resize_mode="pad", background="#0a6432")
    w, h = (round(16 * side / max(size)) for side in size)
    expected = np.full((16, 16, 3), (10, 100, 50), dtype=np.uint8)
    top, left = (16 - h) // 2, (16 - w) // 2
    expected[top : top + h, left : left + w] = RED
    assert (found == expected).all()


def test_pad_adds_nothing_to_a_square(tmp_path: Path) -> None:
    assert (stored(Image.new("RGB", (40, 40), RED), tmp_path, resize_mode="pad", background="blue") == RED).all()


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (32, 16)])
def test_stretch_brings_both_sides_to_the_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """Halves stay halves; only beside the seam does Lanczos mix them."""
    found = stored(halves(*size), tmp_path, resize_mode="stretch")
    assert (found[:, :5] == RED).all() and (found[:, 11:] == BLUE).all()


def test_crop_takes_the_centre_square(tmp_path: Path) -> None:
    """Of 16 rows and 48 columns, columns 16 to 31, unchanged to the bit."""
    pixels = RNG.integers(0, 256, (16, 48, 3), dtype=np.uint8)
    assert (stored(Image.fromarray(pixels), tmp_path) == pixels[:, 16:32]).all()


def jpeg(image: Image.Image, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", **options)
    return data.getvalue()


class TestNone:
    def test_other_sizes_are_left_out_by_name(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name, size in {"fits": (16, 16), "wide": (17, 16), "large": (32, 32)}.items():
            Image.new("RGB", size).save(folder / f"{name}.png")
        shards = build(with_captions(folder), tmp_path / "out", resize_mode="none")
        reason = "other size: {} px, with --resize_mode none it must be 16x16"
        assert len(shards) == 1
        assert skipped(shards.folder) == {"large.png": reason.format("32x32"), "wide.png": reason.format("17x16")}

    def test_a_plain_jpeg_is_kept_byte_for_byte(self, tmp_path: Path) -> None:
        for options in ({"quality": 40}, {"progressive": True}, {"subsampling": 0}, {"comment": b"mine"}):
            data = jpeg(pattern(1, 16), **options)
            (tmp_path / "a.jpg").write_bytes(data)
            assert store_image(tmp_path / "a.jpg", rules())[0].members == {"jpg": data}

    @pytest.mark.parametrize("kind", ["rotated", "profile", "cmyk", "grey", "png"])
    def test_what_decoders_may_show_in_another_way_is_not(self, tmp_path: Path, kind: str) -> None:
        image, exif = pattern(1, 16), Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        data = {
            "rotated": jpeg(image, exif=exif, quality=100, subsampling=0),
            "profile": jpeg(image, icc_profile=profile),
            "cmyk": jpeg(image.convert("CMYK")),
            "grey": jpeg(image.convert("L")),
            "png": (png := io.BytesIO(), image.save(png, "PNG"))[0].getvalue(),
        }[kind]
        (tmp_path / "a.jpg").write_bytes(data)
        kept = store_image(tmp_path / "a.jpg", rules(quality=100))[0].members["jpg"]
        opened = Image.open(io.BytesIO(kept))
        assert kept != data and (opened.format, opened.mode) == ("JPEG", "RGB")
        assert not opened.getexif() and "icc_profile" not in opened.info
        if kind == "rotated":
            upright = np.rot90(np.asarray(image).astype(int), -1)
            assert np.abs(np.asarray(opened) - upright).mean() < 3


def rules(**changed) -> ImageRules:
    fields = {
        "size": 16, "format": "jpg", "quality": 95, "background": (255, 255, 255), "resize_mode": "none",
        "min_side": 0, "max_aspect": 0.0, "keep_originals": False,
    }  # fmt: skip
    return ImageRules(**fields | changed)


@pytest.mark.parametrize("size,kept", [((8, 8), True), ((7, 100), False), ((100, 7), False), ((8, 16), True),
                                       ((16, 8), True), ((8, 17), False), ((17, 8), False)])  # fmt: skip
def test_min_side_and_max_aspect_count_the_upright_source(tmp_path: Path, size: tuple, kept: bool) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    found = store_image(tmp_path / "a.png", rules(resize_mode="crop", min_side=8, max_aspect=2.0))
    assert isinstance(found, str) != kept
    if not kept:
        short = "too small" if min(size) < 8 else "too long"
        assert found.startswith(f"{short}: {size[0]}x{size[1]} px, ")


def test_originals_are_kept_byte_for_byte_and_change_nothing_for_readers(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("a.JPG", "b.png", "c.v2.webp")):
        pattern(number, 40).save(folder / name, "JPEG" if name.endswith("JPG") else None)
    plain, full = (build(with_captions(folder), tmp_path / str(k), keep_originals=k) for k in (False, True))
    with tarfile.open(full.folder / "shard-00000.tar") as tar:
        originals = {m.name: tar.extractfile(m).read() for m in tar if ".original." in m.name}
    sources = [(folder / name).read_bytes() for name in ("a.JPG", "b.png", "c.v2.webp")]
    suffixes = ("jpg", "png", "webp")
    assert originals == {f"00000000{i}.original.{suffixes[i]}": source for i, source in enumerate(sources)}
    for i, sample in enumerate(webdataset.WebDataset(str(full.folder / "shard-00000.tar"), shardshuffle=False)):
        one, other = plain.read(i), full.read(i)
        assert one.image == other.image == sample["jpg"] and one.captions == other.captions
        assert sample[f"original.{suffixes[i]}"] == sources[i] and (one.vectors == other.vectors).all()
    assert i == 2


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a", f"a.{'x' * 120}"])
def test_originals_of_odd_names_spoil_no_shard(tmp_path: Path, name: str) -> None:
    """A table may name any file; a member .pkl would make every reader refuse the tar."""
    pattern(1).save(tmp_path / name, "PNG")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": name, "text": "an image"}))
    build(tmp_path, tmp_path / "out", keep_originals=True)
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
        assert tar.extractfile("000000000.original").read() == (tmp_path / name).read_bytes()


def test_raw_is_read_back_exactly(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    shards = build(with_captions(folder), tmp_path / "out", format="raw")
    for i, image in enumerate(pixels):
        assert (decode_pixels(shards.read(i).image) == image).all()
        _, decoded = read_decoded(shards, i)
        assert (decoded.permute(1, 2, 0).numpy() == image).all()


def test_every_kind_of_image_through_a_build(tmp_path: Path) -> None:
    """8 to 16 bits, alpha, palette and CMYK, in golden values: 16 x 16 px, so nothing is resized."""
    folder = tmp_path / "in"
    folder.mkdir()
    grey = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    half = Image.new("RGBA", (16, 16), (200, 100, 0, 128))
    saved = {
        "grey16": (Image.fromarray(grey), np.repeat((grey / 257).round()[..., None], 3, axis=2)),
        "half": (half, np.array([200, 100, 0]) * 128 / 255 + np.array([0, 0, 255]) * 127 / 255),
        "bits": (Image.fromarray(grey > 30000), np.repeat((grey > 30000)[..., None] * 255, 3, axis=2)),
        "palette": (Image.new("RGB", (16, 16), (1, 2, 3)).quantize(), np.array([1, 2, 3])),
    }
    for name, (image, _) in saved.items():
        image.save(folder / f"{name}.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=100)
    shards = build(with_captions(folder), tmp_path / "out", format="png", background="blue")
    expected = {**{name: values for name, (_, values) in saved.items()}, "cmyk": np.array(RED)}
    for i, name in enumerate(sorted(expected)):
        found = decode_pixels(shards.read(i).image).astype(float)
        assert np.abs(found - expected[name]).max() <= (3 if name == "cmyk" else 1), name


def test_limits_out_of_range() -> None:
    for wrong in ({"min_side": -1}, {"max_aspect": 0.5}, {"near": 11}, {"near": -1}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))} is "):
            CreateOptions(Path("in"), Path("out"), 16, **wrong)

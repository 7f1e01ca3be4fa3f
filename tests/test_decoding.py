"""Every kind of image file against pixels computed without the code under test; everything else refused by name."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from toolkit.data import decoding
from toolkit.data.decoding import BadImage, decode_image, decode_pixels, fit_square, read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 13), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (9, 13), dtype=np.uint8)
TEAL = (0, 128, 128)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    image = decode_image(data, background)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def over(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Porter-Duff 'over' on an opaque ground, in exact arithmetic."""
    share = alpha[..., None] / 255
    return colour * share + np.array(background) * (1 - share)


def grey_as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None].astype(int), 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_colour_is_unchanged(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decoded(encode(COLOUR, kind, **options)) == COLOUR).all()


def test_grey_is_three_equal_channels() -> None:
    assert (decoded(encode(GREY, "PNG")) == grey_as_rgb(GREY)).all()


def test_one_bit_is_black_and_white() -> None:
    bits = GREY > 127
    assert (decoded(encode(Image.fromarray(bits), "PNG")) == grey_as_rgb(bits * 255)).all()


def palette_image() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Palette image, its indices and its palette."""
    indices, palette = GREY % 7, RNG.integers(0, 256, (7, 3), dtype=np.uint8)
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette(palette.tobytes())
    return image, indices, palette


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette_is_looked_up(kind: str) -> None:
    image, indices, palette = palette_image()
    assert (decoded(encode(image, kind)) == palette[indices]).all()


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), TEAL])
class TestTransparency:
    def test_rgba(self, background) -> None:
        image = np.dstack([COLOUR, ALPHA])
        expected = over(COLOUR, ALPHA, background)
        assert np.abs(decoded(encode(image, "PNG"), background) - expected).max() <= 1
        webp = encode(image, "WEBP", lossless=True, exact=True)
        assert np.abs(decoded(webp, background) - expected).max() <= 1

    def test_fully_transparent_is_exactly_the_background(self, background) -> None:
        image = np.dstack([COLOUR, np.zeros_like(ALPHA)])
        assert (decoded(encode(image, "PNG"), background) == background).all()

    def test_grey_with_alpha(self, background) -> None:
        image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
        expected = over(grey_as_rgb(GREY), ALPHA, background)
        assert np.abs(decoded(encode(image, "PNG"), background) - expected).max() <= 1

    def test_palette_with_alpha_per_entry(self, background) -> None:
        image, indices, palette = palette_image()
        alphas = np.array([0, 255, 128, 255, 10, 255, 200], dtype=np.uint8)
        data = encode(image, "PNG", transparency=alphas.tobytes())
        assert np.abs(decoded(data, background) - over(palette[indices], alphas[indices], background)).max() <= 1

    def test_palette_with_one_transparent_entry(self, background) -> None:
        image, indices, palette = palette_image()
        expected = np.where((indices == 3)[..., None], background, palette[indices])
        for kind in ("PNG", "GIF"):
            assert (decoded(encode(image, kind, transparency=3), background) == expected).all()

    def test_transparent_colour(self, background) -> None:
        """PNG tRNS: one RGB or grey value means 'nothing here'."""
        key = tuple(int(value) for value in COLOUR[2, 3])
        expected = np.where((key == COLOUR).all(axis=2)[..., None], background, COLOUR)
        assert (decoded(encode(COLOUR, "PNG", transparency=key), background) == expected).all()
        expected = np.where((GREY[2, 3] == GREY)[..., None], background, grey_as_rgb(GREY))
        assert (decoded(encode(GREY, "PNG", transparency=int(GREY[2, 3])), background) == expected).all()


def test_sixteen_bit_grey_is_scaled() -> None:
    """65535 is white; a plain conversion would clip everything from 256 on."""
    deep = RNG.integers(0, 65536, (9, 13), dtype=np.uint16)
    expected = grey_as_rgb(np.round(deep / 257))
    assert (decoded(encode(Image.fromarray(deep), "PNG")) == expected).all()


def test_dark_sixteen_bit_grey_stays_dark() -> None:
    deep = RNG.integers(0, 256, (9, 13), dtype=np.uint16)
    assert decoded(encode(Image.fromarray(deep), "PNG")).max() <= 1


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    deep = RNG.integers(0, 65536, (9, 13, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    data = png(13, 9, rows, depth=16, colour=2)
    assert np.abs(decoded(data) - deep / 257).max() <= 1


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("cmyk", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 200, 100, 0), (30, 60, 90, 120), (0, 0, 0, 255)])
def test_cmyk(cmyk: tuple[int, int, int, int]) -> None:
    ink = np.array(cmyk) / 255
    expected = np.round(255 * (1 - ink[:3]) * (1 - ink[3]))
    found = decoded(encode(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=100, subsampling=0))
    assert np.abs(found - expected).max() <= 3


def icc(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC v2 profile of these tags (ICC.1:2001-04): a header of 128 bytes, the table of tags, their data."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    white = struct.pack(">iii", 63190, 65536, 54061)  # D50
    head = struct.pack(">I4sI4s4s4s", start + len(data), bytes(4), 0x02100000, kind, space, connection)
    return (head + bytes(12) + b"acsp" + bytes(28) + white).ljust(128, b"\0") + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


WHITE = xyz(0.9642, 1, 0.8249)
P3 = icc(  # primaries adapted to D50; the gamma of 2.2 instead of sRGB's curve shows that curves are read too
    *(b"RGB ", b"XYZ ", b"mntr"),
    {
        b"wtpt": WHITE,
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
        **{name: curve(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")},
    },
)
MAC_GREY = icc(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": WHITE, b"kTRC": curve(1.8)})
RAMP = bytes(range(256))
INVISIBLE_INKS = icc(  # a table of 2x2x2x2 points to Lab: whatever is printed in C, M, Y stays white, K makes it dark
    *(b"CMYK", b"Lab ", b"prtr"),
    {
        b"wtpt": WHITE,
        b"A2B0": b"mft1"
        + bytes(4)
        + bytes([4, 3, 2, 0])
        # the identity matrix, four input curves, the table, three output curves
        + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
        + 4 * RAMP
        + 8 * bytes([255, 128, 128, 0, 128, 128])
        + 3 * RAMP,
    },
)


def linear_from_primaries(*primaries: tuple[float, float]) -> np.ndarray:
    """3x3: linear RGB of these (x, y) primaries and the white D65 -> XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def srgb_levels(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: light in [0, 1] -> levels in [0, 255]."""
    light = linear.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def p3_as_srgb(image: np.ndarray) -> np.ndarray:
    to_xyz = linear_from_primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
    from_xyz = np.linalg.inv(linear_from_primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)))
    return srgb_levels((image / 255) ** 2.2 @ (from_xyz @ to_xyz).T)


class TestColourProfile:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_display_p3(self, kind: str) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        found = decoded(encode(COLOUR, kind, icc_profile=P3, **options))
        expected = p3_as_srgb(COLOUR)
        assert np.abs(expected - COLOUR).max() > 20
        assert np.abs(found - expected).max() <= 2

    def test_display_p3_jpeg(self) -> None:
        flat = Image.new("RGB", (16, 16), (200, 90, 40))
        data = encode(flat, "JPEG", icc_profile=P3, quality=100, subsampling=0)
        assert np.abs(decoded(data) - p3_as_srgb(np.array([200, 90, 40]))).max() <= 4

    def test_palette(self) -> None:
        image, indices, palette = palette_image()
        found = decoded(encode(image, "PNG", icc_profile=P3))
        assert np.abs(found - p3_as_srgb(palette[indices])).max() <= 2

    def test_only_the_image_and_not_the_background_is_converted(self) -> None:
        data = encode(np.dstack([COLOUR, ALPHA]), "PNG", icc_profile=P3)
        assert np.abs(decoded(data, TEAL) - over(p3_as_srgb(COLOUR), ALPHA, TEAL)).max() <= 2
        key = tuple(int(value) for value in COLOUR[2, 3])
        found = decoded(encode(COLOUR, "PNG", icc_profile=P3, transparency=key), TEAL)
        assert (found[2, 3] == TEAL).all()
        assert np.abs(found[0] - p3_as_srgb(COLOUR[0])).max() <= 2

    def test_grey(self) -> None:
        opaque = decoded(encode(GREY, "PNG", icc_profile=MAC_GREY))
        assert np.abs(opaque - grey_as_rgb(srgb_levels((GREY / 255) ** 1.8))).max() <= 2
        clear = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
        found = decoded(encode(clear, "PNG", icc_profile=MAC_GREY), TEAL)
        assert np.abs(found - over(opaque, ALPHA, TEAL)).max() <= 1

    def test_sixteen_bit_grey(self) -> None:
        deep = Image.fromarray(GREY.astype(np.uint16) * 257)
        expected = grey_as_rgb(srgb_levels((GREY / 255) ** 1.8))
        assert np.abs(decoded(encode(deep, "PNG", icc_profile=MAC_GREY)) - expected).max() <= 2

    @pytest.mark.parametrize("key", [0, 77, 255])
    def test_cmyk(self, key: int) -> None:
        image = Image.new("CMYK", (16, 16), (200, 30, 90, key))
        found = decoded(encode(image, "JPEG", icc_profile=INVISIBLE_INKS, quality=100))
        lightness = 100 * (1 - key / 255)
        light = ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3  # CIE 1976
        assert np.abs(found - srgb_levels(np.array(light))).max() <= 3

    def test_srgb_changes_no_bit(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        cube = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), axis=-1).reshape(52, -1, 3)
        assert (decoded(encode(cube, "PNG", icc_profile=profile)) == cube).all()

    @pytest.mark.parametrize("profile", [b"x", b"x" * 5000, P3[:200], P3[:-20], MAC_GREY, INVISIBLE_INKS])
    def test_broken_or_unfitting_is_ignored(self, profile: bytes, capfd, recwarn) -> None:
        assert (decoded(encode(COLOUR, "PNG", icc_profile=profile)) == COLOUR).all()
        assert capfd.readouterr() == ("", "") and not recwarn.list

    def test_damaged_profiles_give_an_image(self) -> None:
        for seed in range(150):
            rng = np.random.default_rng(seed)
            damaged = bytearray(P3)
            for place in rng.integers(0, len(P3), 3):
                damaged[place] = rng.integers(0, 256)
            assert decoded(encode(COLOUR, "PNG", icc_profile=bytes(damaged))).shape == COLOUR.shape


UPRIGHT = {  # EXIF 2.3, tag 0x0112: what a viewer does with the stored rows
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = UPRIGHT[orientation](COLOUR)
    assert (decoded(encode(COLOUR, "PNG", exif=exif)) == expected).all()
    flat = np.repeat(np.repeat(np.array([[[250, 0, 0], [0, 250, 0]]], dtype=np.uint8), 16, 0), 16, 1)
    found = decoded(encode(flat, "JPEG", exif=exif, quality=100, subsampling=0))
    assert np.abs(found - UPRIGHT[orientation](flat)).max() <= 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert (decoded(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 5), (999, 1), (1, 999), (7, 4)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    assert (decoded(encode(image, "PNG")) == image).all()
    assert fit_square(decode_image(encode(image, "PNG")), 8).size == (8, 8)


def lanczos(row: np.ndarray, count: int) -> np.ndarray:
    """`row` [W, ...] -> [count, ...], antialiased: Lanczos-3 from its definition, stretched when reducing."""
    scale = len(row) / count
    centres = (np.arange(count) + 0.5) * scale
    distance = (np.arange(len(row)) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, row, axes=1)


@pytest.mark.parametrize("width, height, size", [(40, 20, 20), (41, 20, 16), (30, 77, 8), (6, 5, 24), (64, 64, 16)])
def test_fit_square_is_centre_crop_and_lanczos(width: int, height: int, size: int) -> None:
    """The crop is of whole pixels, and what lies outside it has no influence."""
    image = RNG.integers(60, 196, (height, width, 3), dtype=np.uint8)  # away from 0 and 255: no clipping between
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image[top : top + side, left : left + side].astype(float)
    rows = lanczos(square.transpose(1, 0, 2), size)
    expected = lanczos(rows.transpose(1, 0, 2), size).clip(0, 255)
    found = np.asarray(fit_square(Image.fromarray(image), size)).astype(float)
    assert np.abs(found - expected).max() <= 1.5


def test_fit_square_of_the_right_size_changes_nothing() -> None:
    image = Image.fromarray(COLOUR[:9, :9])
    assert (np.asarray(fit_square(image, 9)) == COLOUR[:9, :9]).all()


def test_thirty_megapixels() -> None:
    data = encode(Image.new("RGB", (6000, 5000), "red"), "JPEG")
    assert fit_square(decode_image(data), 16).getpixel((8, 8))[0] > 250


PHOTO = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
REFUSED = {
    "empty": b"",
    "text": b"this is no image\n" * 20,
    "html": b"<!doctype html><html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF",
    "psd": b"8BPS\0\1" + bytes(60),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
    "tiff": encode(COLOUR, "TIFF"),
    "ppm": b"P6 2 2 255\n" + bytes(12),
    "pickle": b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused(name: str) -> None:
    with pytest.raises(BadImage, match="no JPEG, PNG, WEBP, GIF, BMP image"):
        decode_image(REFUSED[name])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_is_refused(kind: str, share: float) -> None:
    data = encode(PHOTO, kind)
    with pytest.raises(BadImage):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_damaged_bytes_give_an_image_or_a_named_refusal(kind: str) -> None:
    """No other exception, whatever the bytes: 150 files with three random bytes each."""
    data = np.frombuffer(encode(COLOUR, kind), dtype=np.uint8)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        damaged = data.copy()
        damaged[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        try:
            decode_image(damaged.tobytes())
        except BadImage as error:
            assert str(error)


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_bomb_is_refused_by_its_header(side: int) -> None:
    start = time.perf_counter()
    with pytest.raises(BadImage, match="pixels"):
        decode_image(png(side, side, bytes(1000)))
    assert time.perf_counter() - start < 1


def test_read_image_puts_the_name_in_front(tmp_path) -> None:
    with pytest.raises(BadImage, match=r"dish\.jpg: no JPEG"):
        read_image(lambda: b"text", "dish.jpg", TEAL)
    with pytest.raises(BadImage, match=r"gone\.jpg: cannot be read \(No such file"):
        read_image((tmp_path / "gone.jpg").read_bytes, "gone.jpg", TEAL)


def smooth(width: int, height: int) -> Image.Image:
    """An image that JPEG compresses well, in colours that subsampling changes."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [128 + 120 * np.sin(x / a + y / b) for a, b in ((3, 7), (5, 4), (9, 2))]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


ODD_JPEGS = {
    "turned": {"exif": exif(6)},
    "with a profile": {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "of Adobe's RGB": {"keep_rgb": True},
}


@pytest.fixture
def by_simplejpeg(monkeypatch):
    """Pillow must not be needed, and simplejpeg must be installed."""
    if not decoding.FAST_JPEG:
        pytest.skip("no simplejpeg, or a Pillow without libjpeg-turbo")
    monkeypatch.setattr(decoding, "decode_image", lambda data: pytest.fail("decoded by Pillow"))


@pytest.mark.parametrize("size", [(16, 16), (128, 128), (13, 29), (1, 1)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("option", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"comment": b"hello"}])
def test_plain_jpegs_go_the_short_way_to_the_same_pixels(by_simplejpeg, size, subsampling, option) -> None:
    data = encode(smooth(*size), "JPEG", quality=90, subsampling=subsampling, **option)
    assert np.array_equal(decode_pixels(data), np.asarray(decode_image(data)))


@pytest.mark.parametrize("name", ODD_JPEGS)
def test_what_a_jpeg_asks_for_besides_is_done(name) -> None:
    """By Pillow, for these pixels are not those that the file holds."""
    options = dict(ODD_JPEGS[name])
    data = encode(smooth(24, 16).convert(options.pop("mode", "RGB")), "JPEG", quality=95, **options)
    assert not decoding._is_plain_jpeg(data)
    assert np.array_equal(decode_pixels(data), np.asarray(decode_image(data)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_kinds_too(kind) -> None:
    data = encode(COLOUR, kind)
    assert np.array_equal(decode_pixels(data), np.asarray(decode_image(data)))


def outcome(decode, data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(decode(data))
    except BadImage as error:
        return str(error)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_damage_is_judged_as_pillow_does(subsampling) -> None:
    """Bytes changed anywhere, and ends cut off: the same pixels or the same complaint, whatever is installed."""
    whole, rng = encode(smooth(32, 32), "JPEG", quality=90, subsampling=subsampling), np.random.default_rng(0)
    refused = 0
    for round_ in range(400):
        data = bytearray(whole)
        if round_ % 4:
            for place in rng.integers(0, len(data), round_ % 4):
                data[place] = rng.integers(0, 256)
        else:
            del data[rng.integers(0, len(data)) :]
        expected, found = (outcome(decode, bytes(data)) for decode in (decode_image, decode_pixels))
        assert type(expected) is type(found) and np.array_equal(expected, found)
        refused += isinstance(found, str)
    assert 100 < refused < 350  # some damage shows, some does not


def test_a_jpeg_that_claims_too_much_is_refused() -> None:
    data = bytearray(encode(smooth(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 9000, 12000)
    assert not decoding._is_plain_jpeg(bytes(data))
    with pytest.raises(BadImage, match="12000x9000 px is over the limit"):
        decode_pixels(bytes(data))

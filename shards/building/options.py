"""Every option of `shards.create`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.building.stored_images import ImageRules, parse_colour
from shards.caption_folder.samples import CaptionRules
from toolkit.errors import UserError, check

PASSING = ("out", "val_out", "overwrite", "workers", "device", "share", "strict")
"""Options that leave no trace in the content."""


@dataclass(frozen=True)
class CreateOptions:
    """Build a shard folder from captioned images: fit, embed the captions, write, index, check.

    The same command goes on after a kill, and run again adds images that are new, in shards of their own.
    """

    input: Path
    """Folder with images and captions: a table, images/ and captions/, .txt beside images, or class folders."""
    out: Path
    """The shard folder to make, or to add to; appears, and changes, only when all is complete."""
    size: int
    """Width and height of the stored images in pixels, 8 to 1024."""
    embeddings: Path | None = None
    """Folder of KEY.npy made by shards.embed or elsewhere; default: captions are embedded now by --encoder."""
    encoder: str = ""
    """'hashing' or 'architecture/tag'; default ViT-L-14/laion2b_s32b_b82k. With --embeddings: which made them."""
    encoder_weights: Path | None = None
    """Local copy of the encoder's weights file; default: open_clip's cache or download."""
    device: str = "auto"
    """Where the encoder runs: cpu, cuda, cuda:1, or auto (cuda if there is one)."""
    where: str = ""
    """FIELD=VALUE: only the table rows with that value, e.g. split=train; default all."""
    file_column: str = ""
    """Table column with the image's path; default: file, file_name, filename, image or path."""
    caption_column: str = ""
    """Table column with the caption or list of captions; default: caption, captions, text or title."""
    class_template: str = ""
    """For class folders: the caption with {} for the folder's name, e.g. 'a photo of {}'."""
    resize_mode: Literal["crop", "pad", "stretch", "none"] = "crop"
    """Lanczos after cropping to the centre square, padding with --background, or stretching; none: only SIZE x SIZE."""
    crops: int = 1
    """Squares stored of an image that is not square, spread evenly along its long side, each a sample with the same
    captions, 1 to 100; fewer where neighbours would overlap by over 90 %; default 1: the centre square."""
    min_side: int = 0
    """Images with a shorter side are left out, in pixels; default 0: none are."""
    max_aspect: float = 0.0
    """Images whose longer side is over so many times the shorter are left out, from 1; default 0: none are."""
    format: Literal["jpg", "png", "webp", "raw"] = "jpg"
    """How images are stored: jpg, lossless as png or webp, or raw, which needs most room and no decoding."""
    quality: int = 95
    """JPEG quality, 1 to 100; default 95."""
    background: str = "white"
    """Colour under transparent images and around padded ones: a name or '#rrggbb'; default white."""
    keep_originals: bool = False
    """Also store each source file as it is, as KEY.original.SUFFIX (of several crops with the first); training does not
    read it; default false."""
    dedupe: bool = False
    """Keep the first of images that look alike (shards.report shows them); default false."""
    near: int = 4
    """For --dedupe: alike are images with at most so many of 64 hash bits different, 0 to 10; default 4."""
    val_out: Path | None = None
    """A second shard folder, for the validation part: chosen by a hash of the key, the same in every build."""
    val_share: float = 0.05
    """Share of the images that goes to --val_out, over 0 and below 1; default 0.05."""
    samples_per_shard: int = 1000
    """Samples per tar, 1 to 1000000, of --crops at most; default 1000."""
    limit: int = 0
    """Only the first so many images, sorted by name; default 0: all."""
    strict: bool = False
    """Stop at the first image, caption or embedding that would be skipped; default false."""
    overwrite: bool = False
    """Build anew, and replace an existing shard folder once the new one is complete; default false."""
    workers: int = 0
    """Processes that decode and write, 1 to 256; the result does not depend on it; default 0: by cores and work."""
    share: str = ""
    """I/N: do every N-th shard from the I-th on; default: as accelerate, torchrun or a SLURM array say, else all."""

    def __post_init__(self) -> None:
        check(8 <= self.size <= 1024, "--size", self.size, "from 8 to 1024 pixels")
        check(1 <= self.quality <= 100, "--quality", self.quality, "from 1 to 100")
        sane = 1 <= self.samples_per_shard <= 10**6
        check(sane, "--samples_per_shard", self.samples_per_shard, "from 1 to 1000000")
        check(self.limit >= 0, "--limit", self.limit, "0 (all) or a number of samples")
        check(0 <= self.workers <= 256, "--workers", self.workers, "0 (automatic) or from 1 to 256")
        check(1 <= self.crops <= 100, "--crops", self.crops, "from 1 to 100")
        whole = f"1 with --resize_mode {self.resize_mode}, which keeps images whole"
        check(self.crops == 1 or self.resize_mode == "crop", "--crops", self.crops, whole)
        check(self.min_side >= 0, "--min_side", self.min_side, "0 or a number of pixels")
        check(self.max_aspect == 0 or self.max_aspect >= 1, "--max_aspect", self.max_aspect, "0 (any) or at least 1")
        check(0 <= self.near <= 10, "--near", self.near, "from 0 to 10 bits")
        check(0 < self.val_share < 1, "--val_share", self.val_share, "over 0 and below 1")
        places = [path.resolve() for path in (self.out, self.val_out) if path]
        if self.val_out and (places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0])):
            raise UserError(f"--val_out is {self.val_out}, which is --out or lies in it, or holds it; name another")
        is_colour = parse_colour(self.background) is not None
        check(is_colour, "--background", self.background, "a colour name or '#rrggbb'")
        _ = self.rules  # checks --where and --class_template

    @property
    def rules(self) -> CaptionRules:
        return CaptionRules(self.where, self.file_column, self.caption_column, self.class_template)

    @property
    def image_rules(self) -> ImageRules:
        background = parse_colour(self.background)
        assert background is not None  # checked when the options were made
        return ImageRules(
            self.size, self.format, self.quality, background, self.resize_mode, self.min_side,
            self.max_aspect, self.keep_originals, self.crops,
        )  # fmt: skip

    def record(self) -> dict:
        """What the manifest keeps: all that shapes the content, and of paths the name alone."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in PASSING}
        return {name: value.resolve().name if isinstance(value, Path) else value for name, value in fields.items()}

"""Captions -> embeddings: `python -m shards.embed --input_dir DIR --output_dir OUT`, or `--data SHARDS`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.caption_folder.samples import CaptionRules, find_captions
from shards.embedding.caption_encoder import CaptionEncoder, load_caption_encoder
from shards.embedding.caption_folder import embed_folder
from shards.embedding.shard_folder import embed_shards
from shards.problems import first_few, print_problems, summary
from shards.share import Share
from toolkit.command_line import run
from toolkit.errors import UserError, check


@dataclass(frozen=True)
class EmbedOptions:
    """Embed the captions of a folder, or those of existing shards anew; run again to go on after a kill.

    Several processes share the work by themselves (accelerate launch, torchrun, a SLURM array), or by --share. They
    give the same bytes as one, and meet in the output folder only.
    """

    input_dir: Path | None = None
    """Folder with captions: a tree of .txt files, a table (captions.jsonl, ...) or any form shards.create reads."""
    output_dir: Path | None = None
    """Folder for KEY.npy and encoder.json; made if absent."""
    data: Path | None = None
    """Instead: a shard folder. Embeddings are put beside its tars, which stay as they are; the old ones are dropped."""
    image: bool = False
    """With --data: also embed the images, by the encoder's image tower; default false."""
    model: str = "ViT-L-14"
    """open_clip architecture."""
    pretrained: str = "laion2b_s32b_b82k"
    """open_clip tag: which weights of the architecture."""
    encoder: str = ""
    """Instead of model and pretrained: 'hashing' (no download, for demos) or 'architecture/tag'."""
    encoder_weights: Path | None = None
    """Local copy of the tag's weights file; default: open_clip's cache or download."""
    batch: int = 4096
    """Captions of --input_dir that are embedded between two writes, 1 to 65536: what a kill can cost."""
    device: str = "auto"
    """Where the encoder runs: cpu, cuda, cuda:1, or auto (cuda if there is one; each process of a machine another)."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16: faster on a GPU, refused on a CPU; the vectors' direction changes by about 1e-3."""
    share: str = ""
    """I/N: do every N-th unit from the I-th on; default: as accelerate, torchrun or a SLURM array say, else all."""
    where: str = ""
    """FIELD=VALUE: only the table rows with that value, e.g. split=train; default all."""
    file_column: str = ""
    """Table column with the image's path; default: file, file_name, filename, image or path."""
    caption_column: str = ""
    """Table column with the caption or list of captions; default: caption, captions, text or title."""
    class_template: str = ""
    """For class folders: the caption with {} for the folder's name, e.g. 'a photo of {}'."""

    def __post_init__(self) -> None:
        folders, default = (self.input_dir, self.output_dir), (EmbedOptions.model, EmbedOptions.pretrained)
        if (self.data is None) != all(folders) or (self.data and any(folders)):
            raise UserError("give either --input_dir and --output_dir, or --data")
        if self.image and not self.data:
            raise UserError("--image is for the images of shards; it needs --data")
        if self.data and self.rules != CaptionRules():
            raise UserError("--where, --file_column, --caption_column and --class_template are for --input_dir")
        check(1 <= self.batch <= 65536, "--batch", self.batch, "from 1 to 65536")
        if self.encoder and (self.model, self.pretrained) != default:
            raise UserError("--encoder stands for --model and --pretrained; give the one or the others")

    @property
    def rules(self) -> CaptionRules:
        """Raises UserError for --where and --class_template out of range."""
        return CaptionRules(self.where, self.file_column, self.caption_column, self.class_template)

    @property
    def encoder_name(self) -> str:
        return self.encoder or f"{self.model}/{self.pretrained}"


def main(options: EmbedOptions) -> None:
    share = Share.parse(options.share)
    try:
        if options.data:
            print(embed_shards(options.data, _load(options), options.image, share))
        else:
            _embed_folder(options, share)
    except OSError as error:
        raise UserError(f"cannot write to {options.data or options.output_dir}: {error.strerror or error}") from None


def _embed_folder(options: EmbedOptions, share: Share) -> None:
    assert options.input_dir is not None and options.output_dir is not None  # the options stand for one or the other
    captions, problems = find_captions(options.input_dir, options.rules)
    if not captions:
        raise UserError(f"no usable caption in {options.input_dir}{first_few(problems)}")
    encoder = _load(options)
    count = embed_folder(options.output_dir, captions, encoder, options.batch, share)
    if count is None:
        print("this process's captions are embedded, others' are missing; if their process died, run it again")
        return
    print_problems(problems)
    print(
        f"embedded {count:,} of {len(captions):,} samples with {options.encoder_name} into {options.output_dir}: "
        f"{encoder.identity.dimension}-d, {encoder.truncated:,} captions truncated; {summary(problems)}"
    )


def _load(options: EmbedOptions) -> CaptionEncoder:
    half = options.precision == "fp16"
    return load_caption_encoder(options.encoder_name, options.encoder_weights, options.device, half)


if __name__ == "__main__":
    run(main, EmbedOptions)

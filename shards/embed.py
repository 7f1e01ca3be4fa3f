"""Captions -> a folder of embeddings: `python -m shards.embed --input_dir DIR --output_dir OUT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from shards.caching_encoder import CachedEncoder, load_cached
from shards.captions import CaptionRules, find_captions
from shards.embedding_folder import (
    check_origin,
    load_record,
    open_record,
    record_line,
    save_identity,
    write_embedding,
)
from shards.problems import first_few, print_problems, summary
from toolkit.command_line import run
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError, check


@dataclass(frozen=True)
class EmbedOptions:
    """Embed every caption of a folder with a text encoder; run again to add what is missing."""

    input_dir: Path
    """Folder with captions: a tree of .txt files, a table (captions.jsonl, ...) or any form shards.create reads."""
    output_dir: Path
    """Folder for KEY.npy and encoder.json; made if absent."""
    model: str = "ViT-L-14"
    """open_clip architecture."""
    pretrained: str = "laion2b_s32b_b82k"
    """open_clip tag: which weights of the architecture."""
    encoder: str = ""
    """Instead of model and pretrained: 'hashing' (no download, for demos) or 'architecture/tag'."""
    encoder_weights: Path | None = None
    """Local copy of the tag's weights file; default: open_clip's cache or download."""
    batch: int = 256
    """Samples encoded between two writes, 1 to 65536; sorted by length, and large ones keep a GPU busier."""
    device: str = "auto"
    """Where the encoder runs: cpu, cuda, cuda:1, or auto (cuda if there is one)."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16: faster on a GPU, refused on a CPU; the vectors' direction changes by about 1e-3."""
    where: str = ""
    """FIELD=VALUE: only the table rows with that value, e.g. split=train; default all."""
    file_column: str = ""
    """Table column with the picture's path; default: file, file_name, filename, image or path."""
    caption_column: str = ""
    """Table column with the caption or list of captions; default: caption, captions, text or title."""
    class_template: str = ""
    """For class folders: the caption with {} for the folder's name, e.g. 'a photo of {}'."""

    def __post_init__(self) -> None:
        check(1 <= self.batch <= 65536, "--batch", self.batch, "from 1 to 65536")
        default = (EmbedOptions.model, EmbedOptions.pretrained)
        if self.encoder and (self.model, self.pretrained) != default:
            raise UserError("--encoder stands for --model and --pretrained; give the one or the others")
        _ = self.rules  # checks --where and --class_template

    @property
    def rules(self) -> CaptionRules:
        return CaptionRules(self.where, self.file_column, self.caption_column, self.class_template)


def main(options: EmbedOptions) -> None:
    captions, problems = find_captions(options.input_dir, options.rules)
    if not captions:
        raise UserError(f"no usable caption in {options.input_dir}{first_few(problems)}")
    folder, name = options.output_dir, options.encoder or f"{options.model}/{options.pretrained}"
    encoder = load_cached(name, options.encoder_weights, options.device, options.precision == "fp16")
    identity = EncoderIdentity.of(encoder.encoder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_origin(folder, identity)
        save_identity(folder, identity)
        record = load_record(folder)
        missing = [key for key in captions if record.get(key) != captions[key] or not (folder / f"{key}.npy").is_file()]
        _embed(folder, {key: captions[key] for key in missing}, encoder, options.batch)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    print_problems(problems)
    print(
        f"embedded {len(missing):,} of {len(captions):,} samples with {name} into {folder}: {identity.dimension}-d, "
        f"{encoder.truncated:,} captions truncated; {summary(problems)}"
    )


def _embed(folder: Path, captions: dict[str, tuple[str, ...]], encoder: CachedEncoder, batch: int) -> None:
    keys = list(captions)
    with open_record(folder) as record, tqdm(total=len(keys), disable=None) as bar:
        for start in range(0, len(keys), batch):
            chunk = keys[start : start + batch]
            vectors = encoder.encode([caption for key in chunk for caption in captions[key]])
            for key in chunk:
                mine, vectors = np.split(vectors, [len(captions[key])])
                write_embedding(folder, key, mine)
                record.write(record_line(key, captions[key]))
            record.flush()
            bar.update(len(chunk))


if __name__ == "__main__":
    run(main, EmbedOptions)

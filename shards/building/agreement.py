"""Whether a build may go on with, or add to, what another command left: by options and by encoder."""

import dataclasses
import json
from pathlib import Path

from shards.building.staged_file import staged_file
from shards.report_file import SOURCES_NAME
from toolkit.data.shard_format import Manifest
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError

ENCODER_NAME = "encoder.json"
YOUNGER = {"crops": 1}
"""Options that older builds do not record, and what they were then."""


def load_base(out: Path, settings: dict) -> Manifest:
    """The manifest of a folder that is to be added to. Raises UserError if it was built in another way."""
    manifest = Manifest.load(out)
    if not (out / SOURCES_NAME).is_file():
        raise UserError(
            f"{out} exists and holds no {SOURCES_NAME}, so nothing can be added; choose another --out or --overwrite"
        )
    check_settings(f"{out} was built", manifest.built_with, settings)
    if manifest.vectors or manifest.image_vectors:
        raise UserError(f"the embeddings of {out} stand beside its tars, so nothing can be added; choose another --out")
    return manifest


def agree_on(building: Path, identity: EncoderIdentity) -> EncoderIdentity:
    """The encoder of an unfinished build: that of the process which asks first."""
    path = building / ENCODER_NAME
    with staged_file(path, first_counts=True) as file:
        file.write(json.dumps(dataclasses.asdict(identity)).encode())
    return EncoderIdentity.from_json(json.loads(path.read_bytes()))


def check_encoder(what: str, earlier: EncoderIdentity, identity: EncoderIdentity) -> None:
    """UserError if the vectors of the two must not stand side by side."""
    if difference := earlier.difference(identity):
        raise UserError(f"{what} with another encoder: {difference}; choose another --out or --overwrite")


def check_settings(what: str, earlier: dict, settings: dict) -> None:
    """UserError naming the first option of `settings` that was another."""
    for name, value in settings.items():
        if (before := earlier.get(name, YOUNGER.get(name))) != value:
            raise UserError(
                f"{what} with --{name} {before!r}, not {value!r}; choose another --out, the same option, or "
                "--overwrite to build anew"
            )

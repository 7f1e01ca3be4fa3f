"""What is done already in a folder of tars, and what is left to do."""

from pathlib import Path

from shards.adoption.records import FOLDER, Record, recorded_tars
from toolkit.data.shard_format import MANIFEST_NAME, Manifest
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError


def list_tars(folder: Path) -> list[Path]:
    """Sorted by name. Raises UserError if there are none, or the folder is a shard folder made otherwise."""
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}")
    tars = sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if not tars:
        raise UserError(f"{folder} holds no .tar; adopt the folder in which the tars themselves lie")
    if (folder / MANIFEST_NAME).exists() and not (folder / FOLDER).is_dir():
        raise UserError(f"{folder} is a shard folder already; train on it as it is")
    return tars


def left_to_do(folder: Path, tars: list[Path], settings: dict, overwrite: bool) -> list[Path]:
    """Those of the tars that have no record that still holds.

    Raises UserError, unless `overwrite`, if an adopted tar has changed or is gone, or was adopted with other options.
    """
    names, left = {tar.name for tar in tars}, []
    for name in recorded_tars(folder):
        if name not in names and not overwrite:
            raise UserError(
                f"{folder / name} was adopted and is gone; put it back, or add --overwrite to go without it"
            )
    for tar in tars:
        record = Record.load(folder, tar.name)
        try:
            if record:
                record.check(folder, settings)
            else:
                left.append(tar)
        except UserError:
            if not overwrite:
                raise
            left.append(tar)
    return left


def by_other_weights(folder: Path, tars: list[Path], identity: EncoderIdentity) -> list[Path]:
    """Those that were adopted with weights other than these of the same encoder."""
    records = {tar: Record.load(folder, tar.name) for tar in tars}
    return [tar for tar, record in records.items() if record and record.encoder_sha256 != identity.weights_sha256]


def check_encoder(folder: Path, identity: EncoderIdentity) -> None:
    """UserError if the set has been embedded by another encoder since."""
    if (folder / MANIFEST_NAME).is_file():
        difference = Manifest.load(folder).encoder.difference(identity)
        if difference:
            raise UserError(f"{folder} was embedded by another encoder: {difference}; add --overwrite to replace it")


def make_room(folder: Path, tars: list[Path], mine: list[Path]) -> None:
    """Before tars are adopted anew: the manifest goes, which lists what is about to change, and records without tar."""
    names = {tar.name for tar in tars}
    for name in recorded_tars(folder):
        if name not in names:
            (folder / FOLDER / name).with_suffix(".json").unlink(missing_ok=True)
    if any(tar.name in recorded_tars(folder) for tar in mine):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)


def is_complete(folder: Path, tars: list[Path], built_with: dict) -> bool:
    """Whether the manifest says what another merge of the records would say."""
    if not (folder / MANIFEST_NAME).is_file():
        return False
    manifest, records = Manifest.load(folder), [Record.load(folder, tar.name) for tar in tars]
    used = [record for record in records if record and record.vectors]
    same = manifest.shards == tuple(r.tar for r in used) and manifest.vectors == tuple(r.vectors for r in used)
    return same and manifest.built_with == built_with and (folder / manifest.index_name).is_file()

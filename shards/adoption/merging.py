"""Records of all tars -> index, report and, last, the manifest."""

from pathlib import Path

import numpy as np

from shards.adoption.records import Record, load_rows
from shards.embedding.staging import Staging
from shards.problems import Problem, first_few, summary
from shards.report_file import REPORT_NAME, report_bytes
from toolkit.data.shard_format import INDEX_NAME, MANIFEST_NAME, Manifest
from toolkit.data.tar_index import INDEX_COLUMNS
from toolkit.durable import file_sha256, flush_to_disk
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError


def merge(
    folder: Path, records: list[Record], identity: EncoderIdentity, built_with: dict, staging: Staging
) -> tuple[Manifest, list[Problem]]:
    """The manifest of all tars that have samples, written, and all that was left out.

    A kill at any point leaves a folder that reads as before or as after; two processes that do this at once write the
    same bytes. Raises UserError if there is no sample, or the tars were embedded by different weights.
    """
    problems = [problem for record in records for problem in record.skipped]
    used = [record for record in records if record.vectors]
    if not used:
        raise UserError(f"no sample of {folder} is usable; {summary(problems)}{first_few(problems)}")
    for record in used:
        if record.encoder_sha256 != identity.weights_sha256:
            raise UserError(
                f"{folder / record.tar.name} was adopted with other weights of {identity.name}; give the same "
                "--encoder_weights, or add --overwrite to adopt all tars anew"
            )
    old = Manifest.load(folder) if (folder / MANIFEST_NAME).is_file() else None
    index_name, distinct = _write_index(folder, used, bool(old), staging)
    manifest = Manifest(
        samples=sum(record.tar.samples for record in used),
        distinct_captions=distinct,
        resolution=built_with["size"],
        encoder=identity,
        shards=tuple(record.tar for record in used),
        index_sha256=file_sha256(folder / index_name),
        built_with=built_with,
        fit=built_with["resize_mode"],
        whole_texts=True,
        json_texts=bool(built_with["caption_key"]),
        vectors=tuple(record.vectors for record in used if record.vectors),
        index_name=index_name,
    )
    staging.write_bytes(folder / REPORT_NAME, report_bytes(manifest.samples, problems))
    flush_to_disk(folder)  # the files' names must be on disk before the manifest that lists them
    staging.write_bytes(folder / MANIFEST_NAME, manifest.to_json())
    flush_to_disk(folder)
    for path in folder.glob("index*.npy"):
        if path.name != index_name and (path.name == INDEX_NAME or len(path.name) == len("index-01234567.npy")):
            path.unlink(missing_ok=True)
    return manifest, problems


def _write_index(folder: Path, used: list[Record], replaces: bool, staging: Staging) -> tuple[str, int]:
    """The index's name, another one than that of the index it replaces, and how many captions differ."""
    header = {"descr": "<i8", "fortran_order": False}
    header["shape"] = (sum(record.tar.samples for record in used), len(INDEX_COLUMNS))
    digests, first = [], folder / (f".{INDEX_NAME}.new" if replaces else INDEX_NAME)
    with staging.write(first) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for number, record in enumerate(used):
            rows = np.array(load_rows(folder, record))
            rows[:, 0] = number
            digests.append(rows[:, -1])
            file.write(rows[:, :-1].tobytes())
    distinct = len(np.unique(np.concatenate(digests)))
    if not replaces:
        return INDEX_NAME, distinct
    named = f"index-{file_sha256(first)[:8]}.npy"
    first.replace(folder / named)
    return named, distinct

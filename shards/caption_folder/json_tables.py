"""Tables in one JSON document: a list of rows, or captions in COCO's form (https://cocodataset.org/#format-data)."""

import json
import os
from collections.abc import Iterator
from typing import TextIO

from toolkit.errors import UserError

MAX_BYTES = 1_000_000_000
"""The document is held in memory, where it takes a multiple of its size."""


def document_rows(file: TextIO) -> Iterator[tuple[int | str, dict | str]]:
    """(row from 1, its fields or why there are none); of COCO's form, a row is an annotation with its image's fields.

    Raises UserError for what is malformed as a whole, has another form or is over MAX_BYTES.
    """
    if os.fstat(file.fileno()).st_size > MAX_BYTES:
        raise UserError(f"{file.name} is over {MAX_BYTES:,} bytes; write it as .jsonl, a row per line")
    try:
        document = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} is malformed JSON: {error}") from None
    if isinstance(document, list):
        for number, row in enumerate(document, 1):
            yield number, row if isinstance(row, dict) else f"malformed JSON: {type(row).__name__}, expected {{...}}"
    elif isinstance(document, dict) and all(isinstance(document.get(k), list) for k in ("images", "annotations")):
        yield from _coco_rows(document["images"], document["annotations"])
    else:
        raise UserError(
            f'{file.name} is no table of captions: expected a list of rows [{{"file": ..., "caption": ...}}, ...] '
            "or an object with the lists images and annotations; rename it if it is something else"
        )


def _coco_rows(images: list, annotations: list) -> Iterator[tuple[int | str, dict | str]]:
    known: dict[int | str, dict] = {}
    for number, image in enumerate(images, 1):
        identity = _identity(image, "id")
        if identity is None or "file_name" not in image:
            yield f"image {number}", "malformed JSON: an image needs an id, a number or text, and a file_name"
        elif known.setdefault(identity, image) is not image:
            yield f"image {number}", f"same id: {identity!r:.100} is the id of an earlier image"
    for number, annotation in enumerate(annotations, 1):
        identity = _identity(annotation, "image_id")
        image = None if identity is None else known.get(identity)
        if image:
            yield number, image | annotation | {"file_name": image["file_name"]}
        elif isinstance(annotation, dict):
            yield number, f"caption without image: no image has the id {annotation.get('image_id')!r:.100}"
        else:
            yield number, f"malformed JSON: {type(annotation).__name__}, expected {{...}}"


def _identity(entry: object, name: str) -> int | str | None:
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else None

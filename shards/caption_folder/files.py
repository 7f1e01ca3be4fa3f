"""Files that hold the captions of one image: .txt with a caption a line, .json with an object as in a table's row."""

import re
from pathlib import Path

from shards.caption_folder.tables import parse_object, row_captions
from toolkit.errors import UserError

CAPTION_SUFFIXES = (".txt", ".json")
"""Where an image has both, the first speaks."""
MAX_TEXT_BYTES = 1_000_000


def read_caption_file(folder: Path, path: str, caption_column: str = "") -> list[tuple[str, object]]:
    """(place, caption) pairs of a file: 'plate.txt:LINE' or 'plate.json', with the captions as they stand there.

    Raises UserError (the reason alone) for what cannot be read, is over MAX_TEXT_BYTES, or is no such JSON.
    """
    try:
        with open(f"{folder}/{path}", "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"caption too long: over {MAX_TEXT_BYTES:,} bytes")
    # surrogateescape: a byte that is no UTF-8 costs its own caption, not the whole file
    text = data.decode("utf-8-sig", "surrogateescape")
    if path.lower().endswith(".json"):
        return [(path, caption) for caption in row_captions(parse_object(text), caption_column)]
    lines: list[tuple[str, object]] = [
        (f"{path}:{i}", line) for i, line in enumerate(re.split(r"\r\n?|\n", text), 1) if line.strip()
    ]
    return lines or [(path, "")]

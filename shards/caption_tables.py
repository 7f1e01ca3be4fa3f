"""Tables of captions, JSON Lines or CSV: which file and captions each row names, or what is wrong with it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

from toolkit.errors import UserError

TABLES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")


class TableRow(NamedTuple):
    """One row. Without a path the row is unusable; without captions it is that, or one that `where` leaves out."""

    place: str
    """'captions.jsonl:LINE'."""
    path: str
    """Picture file, relative to the table's folder and inside it."""
    captions: list
    """As they stand in the file; may be no text."""
    reason: str
    """Why the row is unusable, or ''."""


def read_table(table: Path, where: str = "", file_column: str = "", caption_column: str = "") -> Iterator[TableRow]:
    """All rows. `where`: '' or 'FIELD=VALUE'; columns: '' for the first of the usual ones that a row has.

    Raises UserError after the last row if no row is what `where` wants.
    """
    field, _, wanted = where.partition("=")
    values = set()
    for place, fields in _rows(table):
        path, captions, reason = "", [], ""
        try:
            if isinstance(fields, str):
                raise UserError(fields)
            path = _path(_column(fields, file_column, FILE_COLUMNS))
            value = fields.get(field)
            values.add(text := value if isinstance(value, str) else json.dumps(value))  # true, 3, null: as in the file
            if not where or text == wanted:
                found = _column(fields, caption_column, CAPTION_COLUMNS)
                captions = found if isinstance(found, list) and found else [found]
        except UserError as error:
            reason = str(error)
        yield TableRow(place, path, captions, reason)
    if where and wanted not in values:
        some = ", ".join(sorted(values)[:10])
        raise UserError(f"--where {where}: no row of {table} has that; the field is one of: {some}")


def _column(fields: dict, wanted: str, usual: tuple[str, ...]) -> object:
    """The column `wanted` of a row, or the first of the usual ones that it has."""
    names = (wanted,) if wanted else usual
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise UserError(f"no such column: {' or '.join(names)}; the row has {', '.join(map(str, fields))}")
    return fields[name]


def _path(value: object) -> str:
    path = PurePosixPath(value if isinstance(value, str) else "")
    if not path.name:
        raise UserError(f"no file name: found {value!r}")
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"path leaves the folder: {path}")
    return str(path)


def _rows(table: Path) -> Iterator[tuple[str, dict | str]]:
    """('captions.jsonl:LINE', the row's fields or why there are none)."""
    read = _csv_rows if table.suffix == ".csv" else _json_rows
    # surrogateescape: a byte that is no UTF-8 costs its own caption, not the whole table
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, fields in read(file):
            yield f"{table.name}:{line}", fields


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict | str]]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                row = f"malformed JSON: {error}"
            else:
                row = row if isinstance(row, dict) else f"malformed JSON: {type(row).__name__}, expected {{...}}"
            yield line, row


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict | str]]:
    reader = csv.reader(file, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, f"malformed CSV: {error}"
            continue
        if cells is None:
            return
        if not header:
            header = [cell.strip() for cell in cells]
        elif len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        elif cells:
            yield line, f"malformed CSV: {len(cells)} columns, the header has {len(header)}"

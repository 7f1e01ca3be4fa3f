"""Tables of captions, JSON Lines, CSV, Parquet or JSON: which file and captions each row names, or what is wrong."""

import csv
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from shards.caption_folder.json_tables import document_rows
from shards.caption_folder.parquet_tables import ParquetTable
from toolkit.errors import UserError

TABLES = tuple(f"{name}.{kind}" for kind in ("jsonl", "csv", "parquet", "json") for name in ("captions", "metadata"))
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
MAX_VALUES = 1000
"""Values of the `where` field that are remembered for the message about a wrong one."""


class TableRow(NamedTuple):
    """One row. Without a path the row is unusable; without captions it is that, or one that `where` leaves out."""

    place: str
    """'captions.jsonl:LINE', 'captions.parquet:ROW', from 1."""
    path: str
    """Image file, relative to the table's folder and inside it."""
    captions: list
    """As they stand in the file; may be no text."""
    reason: str
    """Why the row is unusable, or ''."""


def read_table(table: Path, where: str = "", file_column: str = "", caption_column: str = "") -> Iterator[TableRow]:
    """All rows. `where`: '' or 'FIELD=VALUE'; columns: '' for the first of the usual ones that a row has.

    Raises UserError if the table cannot be read, and after the last row if no row is what `where` wants.
    """
    field, _, wanted = where.partition("=")
    values: set[str] = set()
    matched = not where
    for place, fields in _rows(table, field, file_column, caption_column):
        path, captions, reason = "", [], ""
        try:
            if isinstance(fields, str):
                raise UserError(fields)
            path = _path(_column(fields, file_column, FILE_COLUMNS))
            text = _text(fields.get(field)) if where else wanted
            if text == wanted:
                matched = True
                captions = row_captions(fields, caption_column)
            elif len(values) < MAX_VALUES:
                values.add(text)
        except UserError as error:
            reason = str(error)
        yield TableRow(place, path, captions, reason)
    if not matched:
        some = _in_a_line(sorted(values)[:10])
        raise UserError(f"--where {where}: no row of {table} has that; the field is one of: {some}")


def parse_object(text: str) -> dict:
    """The JSON object that a text is. UserError (the reason alone) for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"malformed JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"malformed JSON: {type(found).__name__}, expected {{...}}")
    return found


def row_captions(fields: dict, column: str = "") -> list:
    """The captions of a row, one or a list of them, as they stand there. UserError if it has no such column."""
    found = _column(fields, column, CAPTION_COLUMNS)
    return found if isinstance(found, list) and found else [found]


def _column(fields: dict, wanted: str, usual: tuple[str, ...]) -> object:
    """The column `wanted` of a row, or the first of the usual ones that it has."""
    names = _names(wanted, usual)
    for name in names:
        if name in fields:
            return fields[name]
    raise UserError(f"no such column: {' or '.join(names)}; the row has {_in_a_line(fields)}")


def _names(wanted: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    return (wanted,) if wanted else usual


def _in_a_line(names: Iterable[object]) -> str:
    return textwrap.shorten(", ".join(map(str, names)), 300, placeholder=" ...")


def _path(value: object) -> str:
    path = value if isinstance(value, str) else ""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        raise UserError(f"no file name: found {value!r:.100}")
    if path.startswith("/") or ".." in parts:
        raise UserError(f"path leaves the folder: {path:.300}")
    return "/".join(parts)


def _text(value: object) -> str:
    """A value as `where` names it: true, 3 and null as they stand in JSON, what JSON does not know as Python's str."""
    return value if isinstance(value, str) else json.dumps(value, default=str).strip('"')


def _rows(table: Path, *columns: str) -> Iterator[tuple[str, dict | str]]:
    """('captions.jsonl:LINE', the row's fields or why there are none); `columns`: of `where`, files and captions."""
    for number, fields in _parquet_rows(table, *columns) if table.suffix == ".parquet" else _text_rows(table):
        yield f"{table.name}:{number}", fields


def _text_rows(table: Path) -> Iterator[tuple[int | str, dict | str]]:
    read = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": document_rows}[table.suffix]
    try:
        # surrogateescape: a byte that is no UTF-8 costs its own caption, not the whole table
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from read(file)
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}") from None


def _parquet_rows(table: Path, field: str, file_column: str, caption_column: str) -> Iterator[tuple[int, dict | str]]:
    parquet = ParquetTable(table)
    try:
        for wanted, usual in ((file_column, FILE_COLUMNS), (caption_column, CAPTION_COLUMNS)):
            _column(dict.fromkeys(parquet.columns), wanted, usual)
    except UserError as error:  # of the whole table, so that one line says it and not one for every row
        raise UserError(f"{table}: {str(error).replace('the row has', 'it has')}") from None
    yield from parquet.rows({field, *_names(file_column, FILE_COLUMNS), *_names(caption_column, CAPTION_COLUMNS)})


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict | str]]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                row: dict | str = parse_object(text)
            except UserError as error:
                row = str(error)
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

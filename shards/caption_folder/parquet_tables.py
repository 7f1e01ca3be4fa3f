"""Rows of a Parquet file, read a few at a time. pyarrow is looked for only when a folder has such a table."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UserError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Scalar
    from pyarrow.parquet import ParquetFile

BATCH = 1024
"""Rows held at once."""
OLDEST = 17
"""First major version that knows numpy 2; below 14.0.1 a file could make pyarrow unpickle (CVE-2023-47248)."""


class ParquetTable:
    """A table that is open. UserError (one line) if pyarrow is missing, and for what is no sound Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, _open(path)
        self.columns: list[str] = self._file.schema_arrow.names

    def rows(self, columns: set[str]) -> Iterator[tuple[int, dict | str]]:
        """(row from 1, its fields or why there are none). Other columns stay unread: some hold whole images."""
        number = 0
        wanted = [name for name in self.columns if name in columns]
        batches = self._file.iter_batches(BATCH, columns=wanted, use_threads=False)
        while batch := self._next(batches):
            for fields in _fields(batch):
                number += 1
                yield number, fields

    def _next(self, batches: "Iterator[RecordBatch]") -> "RecordBatch | None":
        try:
            return next(batches, None)
        except Exception as error:  # OSError, ValueError, MemoryError and pyarrow's own
            raise _damaged(self.path, error) from None


def _open(path: Path) -> "ParquetFile":
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} needs pyarrow to be read: pip install pyarrow") from None
    if int(pyarrow.__version__.partition(".")[0]) < OLDEST:
        raise UserError(f"{path} needs pyarrow {OLDEST} or later, not {pyarrow.__version__}: pip install -U pyarrow")
    try:
        # otherwise a column of a whole row group is read at once
        piecemeal = {"buffer_size": 2**20, "pre_buffer": False}
        return ParquetFile(path.open("rb"), page_checksum_verification=True, **piecemeal)
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}")


def _fields(batch: "RecordBatch") -> list[dict | str]:
    try:
        return batch.to_pylist()
    except (ValueError, TypeError, OverflowError):  # one value that Python cannot hold must not cost the other rows
        return [_row(batch, i) for i in range(batch.num_rows)]


def _row(batch: "RecordBatch", i: int) -> dict | str:
    fields = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = _value(column[i])
        except (ValueError, TypeError, OverflowError) as error:
            return f"bad value: {' '.join(str(error).split())[:200]} in column {name}"
    return fields


def _value(scalar: "Scalar") -> object:
    """As Python has it; a byte that is no UTF-8 as `surrogateescape` would read it, so that it costs its text alone."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        if scalar.type.num_fields:  # a list
            return [_value(element) for element in scalar.values]
        return error.object.decode("utf-8", "surrogateescape")

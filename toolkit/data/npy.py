"""Arrays in .npy files of unknown origin: numbers, or a ValueError; never an object, never more memory than bytes."""

import io
from functools import lru_cache

import numpy as np

MAGIC = b"\x93NUMPY"


def read_npy(data: bytes, kind: str) -> np.ndarray:
    """The array of a .npy file whose dtype is of `kind` ('f' real, 'u' unsigned). Raises ValueError for anything else.

    numpy's own reader makes room for whatever shape the header claims before it looks for the bytes.
    """
    width = 2 if data[6:7] == b"\1" else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    shape, by_columns, dtype = _header(data[:start])
    if dtype.kind != kind or min(shape, default=1) < 0:
        expected = {"f": "real", "u": "unsigned"}[kind]
        raise ValueError(f"an array of type {str(dtype)[:40]!r}, shape {str(shape)[:40]}: expected {expected} numbers")
    values = np.frombuffer(data, dtype, offset=start)
    return values.reshape(shape, order="F" if by_columns else "C")


@lru_cache(maxsize=256)  # numpy parses it as Python, which takes longer than reading it
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order, dtype. Raises ValueError; numpy refuses headers above 10,000 bytes."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        return read_header[version](stream)
    except Exception as error:  # of a hostile header: SyntaxError, KeyError, RecursionError, TokenError, ...
        raise ValueError(f"no .npy file: {' '.join(str(error).split())[:100]}") from None

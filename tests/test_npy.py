"""The reader of .npy files against numpy's own; headers are parsed once, so each is asked for twice."""

import io

import numpy as np
import pytest

from toolkit.data.npy import read_npy


def as_npy(values: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values, version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype, kind", [("<f2", "f"), ("<f4", "f"), (">f8", "f"), ("u1", "u"), ("<u2", "u")])
def test_as_numpy_reads_it(version, order, dtype, kind) -> None:
    for start in (0, 100):  # the same header before other numbers
        values = np.asarray(np.arange(start, start + 24).reshape(2, 3, 4).astype(dtype), order=order)
        found = read_npy(as_npy(values, version), kind)
        assert found.dtype == values.dtype and np.array_equal(found, np.load(io.BytesIO(as_npy(values, version))))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", as_npy(np.zeros(3))[:60], b"\x93NUMPY\x09\x00" + bytes(100),
     as_npy(np.zeros(3))[:-1], as_npy(np.zeros(3, np.uint8)), as_npy(np.array("text"))],
)  # fmt: skip
def test_anything_else_is_refused_each_time(data) -> None:
    for _ in range(2):
        with pytest.raises(ValueError):
            read_npy(data, "f")

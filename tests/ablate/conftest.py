"""Shards for the grids, and a tiny grid over them."""

from pathlib import Path

import pytest

from benchmarks.ablate.grid import Grid, read_grid
from tests.ablate.made import write_grid
from tests.scored import write_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ablate")
    write_shards(folder / "shards", 72)
    write_shards(folder / "test", 66)
    return folder


@pytest.fixture
def grid(place) -> Grid:
    return read_grid(write_grid(place))

"""Shared test data: a drawn caption folder, tiny shards, and where the optional real data lies."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("TOOLKIT_TEST_DATA", REPOSITORY.parent / "shared"))
"""Real photos and Inception features for the tests that use them; they skip where it is absent."""


@pytest.fixture
def real_data() -> Path:
    if not (REAL_DATA / "data").is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (set TOOLKIT_TEST_DATA)")
    return REAL_DATA

"""Whose part of the work is whose: from the option, or from what launchers and SLURM put into the environment."""

import re

import pytest

from shards.share import Share
from toolkit.errors import UserError


@pytest.mark.parametrize(
    "text,expected", [("0/1", (0, 1)), ("2/4", (2, 4)), ("007/010", (7, 10)), ("0/999999", (0, 999999))]
)
def test_the_option(text: str, expected: tuple[int, int]) -> None:
    assert Share.parse(text) == Share(*expected)


@pytest.mark.parametrize("text", ["1", "1/", "/4", "4/4", "5/4", "0/0", "-1/4", "1/-4", "1/4/2", "a/b", "1.0/4", " 0/4",
                                  "0/4\n", "0/1000000"])  # fmt: skip
def test_another_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--share is {text!r}; it must be I/N")) as refused:
        Share.parse(text)
    assert "\n" not in str(refused.value)


ARRAY = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "14",
         "SLURM_ARRAY_TASK_STEP": "2"}  # fmt: skip


@pytest.mark.parametrize("environment,expected", [
    ({}, (0, 1)),
    ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
    ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (0, 1)),
    (ARRAY | {"SLURM_ARRAY_TASK_ID": "10"}, (0, 3)),
    (ARRAY | {"SLURM_ARRAY_TASK_ID": "14"}, (2, 3)),
    (ARRAY | {"SLURM_ARRAY_TASK_ID": "12", "RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
])  # fmt: skip
def test_the_environment(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert Share.of_environment(environment) == Share(*expected)


@pytest.mark.parametrize("environment", [
    {"RANK": "x", "WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": ""},
    {"RANK": "2", "WORLD_SIZE": "2"},
    {"RANK": "1"},
    {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": "-2"},
    ARRAY | {"SLURM_ARRAY_TASK_ID": "11"},
    ARRAY | {"SLURM_ARRAY_TASK_ID": "8"},
    ARRAY | {"SLURM_ARRAY_TASK_ID": "16"},
    {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_ID": "7"},  # --array=1,2,7
], ids=str)  # fmt: skip
def test_an_environment_that_leaves_work_undone_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match="the environment.*; pass --share I/N") as refused:
        Share.of_environment(environment)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_disjoint_complete_and_even(count: int) -> None:
    shares = [Share(index, count).mine(range(20)) for index in range(count)]
    assert sorted(unit for share in shares for unit in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

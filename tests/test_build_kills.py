"""Killed at any call to the disk: OUT is what it was, or whole, and the same command ends with the same bytes."""

import itertools
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.building import merging
from tests.builds import beside, build, contents, paint, pattern
from toolkit.data.shard_format import Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

CALLS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync")
CREATING = ("mkdir", "rename", "replace", "link", "fsync", "open")
FULL = OSError(28, "No space left on device")


def watch(patch: pytest.MonkeyPatch, names: tuple[str, ...], told: Callable[[str], None]) -> None:
    """`told` hears of every call that changes the disk, before it is made."""

    def heard(name: str, real: Callable) -> Callable:
        def call(*arguments, **named):
            told(name)
            return real(*arguments, **named)

        return call

    for name in names:
        if name != "open":
            patch.setattr(os, name, heard(name, getattr(os, name)))
    real_open = Path.open

    def opened(path: Path, mode: str = "r", *arguments, **named):
        if set(mode) & set("wxa"):
            told("open")
        return real_open(path, mode, *arguments, **named)

    patch.setattr(Path, "open", opened)


def killed_at(number: int, folder: Path, out: Path, options: dict) -> bool:
    """A build in a process that kills itself at its `number`-th call to the disk; False if it made fewer."""

    def run() -> None:
        torch.set_num_threads(1)
        calls = itertools.count(1)
        watch(
            pytest.MonkeyPatch(), CALLS,
            lambda name: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == number else None,
        )  # fmt: skip
        build(folder, out, **options)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.fixture(autouse=True)
def one_thread_and_no_waiting(monkeypatch):
    """A fork copies no threads, and waits for ever for those it believes in. What a process has written outlives it
    without a flush, so that none waits for the disk; they stay calls to be killed at."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SITUATIONS = ("into an empty folder", "adding near-duplicates", "overwriting")


class Case:
    """Images to build, in 2 or 3 parts, and a folder OUT as it is before the build."""

    def __init__(self, place: Path, situation: str) -> None:
        self.folder, self.place, self.situation = paint(place / "in", range(7)), place, situation
        self.options = {"dedupe": "duplicates" in situation}
        self.before: dict[str, bytes] = {}
        if situation.startswith(("adding", "overwriting")):
            build(self.folder, place / "base", **self.options)
            self.before = contents(place / "base")
            paint(self.folder, range(7, 13))
        if "duplicates" in situation:
            for number, like in ((4, 2), (6, 0), (9, 1), (12, 10)):
                paint(self.folder, [number])
                pattern(like, 40).save(self.folder / f"{number:03d}.png")
        self.options["overwrite"] = situation == "overwriting"
        self.whole = contents(build(self.folder, self.prepare("whole"), **self.options).folder)

    def prepare(self, name: str) -> Path:
        """OUT in a place of its own."""
        out = self.place / name / "out"
        out.parent.mkdir()
        if self.before or "empty" in self.situation:
            out.mkdir()
        for file, data in self.before.items():
            (out / file).write_bytes(data)
        return out

    def check_interrupted(self, out: Path, where: str) -> None:
        """Nothing half under the final name; what stood there is there, or safe beside it between two renames."""
        found = contents(out) if out.exists() else {}
        safe = contents(old) if (old := out.with_name(".out.old")).exists() and not out.exists() else None
        assert (found or safe or {}) in (self.before, self.whole), where

    def finish(self, out: Path, where: str) -> None:
        build(self.folder, out, **self.options)
        assert contents(out) == self.whole and not beside(out), where


def calls_of(case: Case) -> list[str]:
    out, made = case.prepare("counted"), []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, CALLS, made.append)
        build(case.folder, out, **case.options)
    return made


def chosen(calls: list[str], every: int) -> list[int]:
    """The numbers, from 1, of every so-manieth call, and of the first and the last of each kind."""
    firsts = {calls.index(kind) + 1 for kind in calls}
    lasts = {len(calls) - calls[::-1].index(kind) for kind in calls}
    return sorted({*range(1, len(calls) + 1, every), *firsts, *lasts})


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_kill_at_any_call_to_the_disk(tmp_path: Path, situation: str, every: int) -> None:
    case = Case(tmp_path, situation)
    calls = calls_of(case)
    for number in chosen(calls, every):
        out = case.prepare(f"try{number}")
        assert killed_at(number, case.folder, out, case.options)
        case.check_interrupted(out, f"call {number}")
        case.finish(out, f"call {number}")
    out = case.prepare("never")
    assert len(calls) > 30 and not killed_at(len(calls) + 1, case.folder, out, case.options)
    assert contents(out) == case.whole


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Every try is killed too, one call later than the last; still it comes to its end, and to the same bytes."""
    case = Case(tmp_path, "adding near-duplicates")
    out, number = case.prepare("again"), 1
    while killed_at(number, case.folder, out, case.options):
        case.check_interrupted(out, f"call {number}")
        number += 1
    case.finish(out, "the last")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_full_disk_at_any_call_is_one_line_and_costs_nothing(tmp_path: Path, situation: str) -> None:
    """But where there is another way: without room for a link the file is copied."""
    case, refused = Case(tmp_path, situation), 0
    for number in itertools.count(1):
        out, calls, made = case.prepare(f"try{number}"), itertools.count(1), []

        def full(name: str, number: int = number, calls: itertools.count = calls, made: list = made) -> None:
            if next(calls) == number:
                made.append(name)
                raise FULL

        with pytest.MonkeyPatch.context() as patch:
            watch(patch, CREATING, full)
            try:
                build(case.folder, out, **case.options)
            except UserError as error:
                assert "cannot write" in str(error) and "No space left on device" in str(error)
                assert "\n" not in str(error)
                refused += 1
                case.check_interrupted(out, f"call {number} ({made})")
                assert out.exists() or not case.before
        if not made:
            break
        case.finish(out, f"call {number} ({made})")
    assert refused > 20 and contents(out) == case.whole


@pytest.mark.parametrize("step", ["addfile", "write_report", "save"])
def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path: Path, monkeypatch, step: str) -> None:
    owner = {"addfile": tarfile.TarFile, "write_report": merging, "save": Manifest}[step]
    case = Case(tmp_path, "adding")
    out = case.prepare("out")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write .*No space left on device"):
        patch.setattr(owner, step, lambda *_: (_ for _ in ()).throw(FULL))
        build(case.folder, out, **case.options)
    assert contents(out) == case.before
    case.finish(out, step)


def test_an_interrupted_overwrite_is_forgotten_by_a_command_without_it(tmp_path: Path) -> None:
    """Its parts are no addition to what stands there."""
    case = Case(tmp_path, "overwriting")
    out = case.prepare("out")
    assert killed_at(25, case.folder, out, case.options) and list(out.parent.glob(".out.building/shard-*.json"))
    build(case.folder, out)
    assert len(ShardSet(out)) == 13 and not beside(out)
    assert {name: data for name, data in contents(out).items() if name in case.before and name.endswith(".tar")} == {
        name: data for name, data in case.before.items() if name.endswith(".tar")
    }


def test_an_addition_whose_folder_is_gone_is_forgotten(tmp_path: Path) -> None:
    case = Case(tmp_path, "adding")
    out = case.prepare("out")
    assert killed_at(25, case.folder, out, case.options) and list(out.parent.glob(".out.building/shard-*.json"))
    shutil.rmtree(out)
    assert len(build(case.folder, out)) == 13 and not beside(out)


def test_what_stood_there_comes_back_without_the_building_folder_too(tmp_path: Path) -> None:
    case = Case(tmp_path, "adding")
    out = case.prepare("out")
    out.rename(out.with_name(".out.old"))
    case.finish(out, "renamed")

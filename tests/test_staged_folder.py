"""A folder appears whole or not at all, and takes nothing else's place."""

import errno
from pathlib import Path

import pytest

from shards import staged_folder as staging
from shards.staged_folder import staged_folder
from tests.builds import beside, contents
from toolkit.errors import UserError

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fill(out: Path) -> None:
    with staged_folder(out) as folder:
        assert folder.parent == out.parent and not (out / "a").exists()
        (folder / "a").write_text("new")


def test_it_appears_at_the_end(out: Path) -> None:
    fill(out / "deeper")
    assert contents(out / "deeper") == {"a": b"new"}
    assert not beside(out / "deeper")


@pytest.mark.parametrize("failure,expected", [(FULL, UserError), (KeyboardInterrupt(), KeyboardInterrupt),
                                              (SystemExit(143), SystemExit)])  # fmt: skip
def test_a_failure_leaves_nothing(out: Path, failure: BaseException, expected: type) -> None:
    with pytest.raises(expected), staged_folder(out) as folder:
        (folder / "half").write_text("half")
        raise failure
    assert not out.exists() and not beside(out)


def test_a_rename_that_fails(out: Path, monkeypatch) -> None:
    def rename(path: Path, target: Path) -> Path:
        raise FULL

    monkeypatch.setattr(staging.Path, "rename", rename)
    with pytest.raises(UserError, match="cannot write .*No space left on device"):
        fill(out)
    assert not out.exists() and not beside(out)


def test_output_in_the_way(tmp_path: Path, out: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file exists; choose another --out"):
        fill(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        fill(tmp_path / "file" / "out")
    out.mkdir()
    (tmp_path / ".out.tmp-1").mkdir()
    fill(out)
    assert ".out.tmp-1 is of another command" in capsys.readouterr().err and contents(out) == {"a": b"new"}
    with pytest.raises(UserError, match="out exists and is not empty; choose another --out"):
        fill(out)
    assert contents(out) == {"a": b"new"}

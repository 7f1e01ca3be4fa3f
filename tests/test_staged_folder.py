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


def fill(out: Path, text: str = "new", overwrite: bool = False) -> None:
    with staged_folder(out, overwrite) as folder:
        assert folder.parent == out.parent and (out.exists() or not any(out.parent.glob("out")))
        (folder / "manifest.json").write_text(text)
        (folder / "shard-00000.tar").write_text(text)


def test_it_appears_at_the_end(out: Path) -> None:
    fill(out / "deeper")
    assert contents(out / "deeper") == {"manifest.json": b"new", "shard-00000.tar": b"new"}
    assert not beside(out / "deeper")


@pytest.mark.parametrize("failure,expected", [(FULL, UserError), (KeyboardInterrupt(), KeyboardInterrupt),
                                              (SystemExit(143), SystemExit)])  # fmt: skip
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_what_was_there(out: Path, failure: BaseException, expected: type, there: bool) -> None:
    if there:
        fill(out, "old")
    with pytest.raises(expected), staged_folder(out, overwrite=True) as folder:
        (folder / "half").write_text("half")
        raise failure
    assert out.exists() == there and not beside(out)
    assert not there or set(contents(out).values()) == {b"old"}


@pytest.mark.parametrize("call", [1, 2])
def test_a_rename_that_fails_brings_back_what_was_there(out: Path, monkeypatch, call: int) -> None:
    fill(out, "old")
    real, calls = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == call:
            raise FULL
        return real(path, target)

    monkeypatch.setattr(staging.Path, "rename", rename)
    with pytest.raises(UserError, match="cannot write .*No space left on device"):
        fill(out, overwrite=True)
    assert set(contents(out).values()) == {b"old"} and not beside(out)


def test_only_shard_folders_are_replaced_and_only_when_asked(out: Path) -> None:
    fill(out, "old")
    with pytest.raises(UserError, match="exists and is not empty.*--overwrite"):
        fill(out)
    fill(out, overwrite=True)
    assert set(contents(out).values()) == {b"new"}
    (out / "thesis.docx").write_text("precious")
    with pytest.raises(UserError, match="it holds thesis.docx"):
        fill(out, overwrite=True)
    (out / "thesis.docx").unlink()
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="no shard folder .it holds no manifest.json"):
        fill(out, overwrite=True)


def test_output_in_the_way(tmp_path: Path, out: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        fill(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        fill(tmp_path / "file" / "out")
    with pytest.raises(UserError, match="mount point"):
        fill(Path("/proc"))
    out.mkdir()
    (tmp_path / ".out.tmp-1").mkdir()
    fill(out)
    assert ".out.tmp-1 is of another build" in capsys.readouterr().err and len(contents(out)) == 2

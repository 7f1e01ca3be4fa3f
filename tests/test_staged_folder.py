"""A shard folder appears whole or not at all, and takes nothing else's place."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from shards import writer
from tests.conftest import REPOSITORY
from tests.test_create import build, nothing_left
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError


class TestAppearsWhole:
    @pytest.mark.parametrize(
        "failure, expected",
        [(OSError(errno.ENOSPC, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
    )
    @pytest.mark.parametrize("place", ["add", "index"])
    def test_failure_leaves_nothing(
        self, caption_folder: Path, tmp_path: Path, monkeypatch, failure: BaseException, expected: type, place: str
    ) -> None:
        def fail(*_) -> None:
            raise failure

        monkeypatch.setattr(writer.ShardWriter, place, fail)
        with pytest.raises(expected):
            build(caption_folder, tmp_path / "out")
        assert nothing_left(tmp_path, tmp_path / "out")

    def test_overwrite_replaces_only_shards_and_only_when_complete(
        self, caption_folder: Path, tmp_path: Path, monkeypatch
    ) -> None:
        out = tmp_path / "out"
        build(caption_folder, out, limit=3)
        with pytest.raises(UserError, match="exists and is not empty.*--overwrite"):
            build(caption_folder, out)
        with monkeypatch.context() as patch, pytest.raises(UserError, match="no space"):
            patch.setattr(writer.ShardWriter, "index", lambda self: (_ for _ in ()).throw(OSError("no space")))
            build(caption_folder, out, overwrite=True)
        assert len(ShardSet(out)) == 3
        assert len(build(caption_folder, out, overwrite=True)) == 12
        assert not list(tmp_path.glob(".*"))
        (out / "thesis.docx").write_text("precious")
        with pytest.raises(UserError, match="it holds thesis.docx"):
            build(caption_folder, out, overwrite=True)
        with pytest.raises(UserError, match="no shard folder"):
            build(caption_folder, caption_folder, overwrite=True)

    def test_output_in_the_way(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            build(caption_folder, tmp_path / "file")
        with pytest.raises(UserError, match="cannot write"):
            build(caption_folder, tmp_path / "file" / "out")
        with pytest.raises(UserError, match="mount point"):
            build(caption_folder, Path("/proc"))
        (tmp_path / "empty").mkdir()
        (tmp_path / ".empty.tmp-1").mkdir()
        assert len(build(caption_folder, tmp_path / "empty")) == 12
        assert ".empty.tmp-1 is of another build" in capsys.readouterr().err

    def test_killed_by_path_from_elsewhere(self, tmp_path: Path) -> None:
        """The script by its path, from another folder; SIGTERM in the middle leaves nothing."""
        for i in range(60):
            (tmp_path / f"in/{i}").mkdir(parents=True)
        Image.new("RGB", (3000, 3000)).save(tmp_path / "in/0/a.png")
        for i in range(1, 60):
            os.link(tmp_path / "in/0/a.png", tmp_path / f"in/{i}/a.png")
        flags = ["--input=in", "--out=out", "--size=8", "--encoder=hashing", "--class_template={}"]
        script = [sys.executable, REPOSITORY / "shards" / "create.py", *flags]
        with subprocess.Popen(script, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(".out.tmp-*/*.tar")) and time.monotonic() < deadline:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
            assert process.stderr.read() == ""
        assert nothing_left(tmp_path, tmp_path / "out")

    def test_one_line_errors_by_module(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "shards.create", "--input", "gone", "--out", "out", "--size", "8"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "create: no folder at gone\n"
        assert list(tmp_path.iterdir()) == []

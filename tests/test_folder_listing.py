"""Listing folders as they are: unreadable, looping, large, and with names of every kind."""

import os
import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from shards.caption_folder.listing import by_key, key_of, list_files
from shards.caption_folder.samples import CaptionRules, find_captions, find_samples
from toolkit.errors import UserError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_all_plain_files_sorted_as_text(tmp_path: Path) -> None:
    names = ["a/b/c.txt", "a.png", "a-b/z.png", "Z.jpg", "a/č.png", "пицца/борщ.jpg", "🍲.webp", "no suffix"]
    make(tmp_path, *names, ".hidden.png", "a/.folder/x.png")
    assert list_files(tmp_path) == sorted(names)
    expected = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert [path for path in expected if "/." not in f"/{path}"] == list_files(tmp_path)


def test_composed_and_decomposed_names_are_two_files(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "žito.png") for form in ("NFC", "NFD")]
    make(tmp_path, *names)
    assert list_files(tmp_path) == sorted(names)


@pytest.mark.parametrize("name", ["", "more", "more/deep"])
def test_an_unreadable_folder_is_named(tmp_path: Path, name: str, monkeypatch) -> None:
    make(tmp_path, "a.png", "more/b.png", "more/deep/c.png")
    scan = os.scandir

    def refuse(path):
        if Path(path) == tmp_path / name:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError) as error:
        list_files(tmp_path)
    assert str(error.value) == f"{tmp_path / name} cannot be read (Permission denied)"


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a/1.png", "b/2.png")
    make(tmp_path / "out", "3.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "across").symlink_to(folder / "a")
    (folder / "linked").symlink_to(tmp_path / "out")
    (folder / "file.png").symlink_to(tmp_path / "out" / "3.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "self").symlink_to(folder / "self")
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    os.mkfifo(folder / "pipe.png")
    assert list_files(folder) == ["a/1.png", "b/2.png", "file.png", "linked/3.png"]


def test_twenty_thousand_files_are_not_asked_for_one_by_one(tmp_path: Path, monkeypatch) -> None:
    """Empty files in 20 folders, half of them images: a stat for each folder, none for a file."""
    for i in range(20):
        (tmp_path / f"{i:03d}").mkdir()
        for j in range(500):
            for suffix in ("png", "txt"):
                os.close(os.open(tmp_path / f"{i:03d}" / f"{j:03d}.{suffix}", os.O_CREAT | os.O_WRONLY))
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(path) or stat(path, **how))
    files = list_files(tmp_path)
    monkeypatch.undo()
    assert len(files) == 20_000 and files[0] == "000/000.png" and files[-1] == "019/499.txt"
    assert len(asked) <= 22  # is_dir of the folder itself, too
    assert sum(1 for _ in by_key(files, (".png",), "012/")) == 500


@pytest.mark.parametrize("find", [find_samples, find_captions])
@pytest.mark.parametrize("what", ["missing", "a file", "empty", "only hidden files", "only empty folders"])
def test_no_folder_of_files(tmp_path: Path, what: str, find) -> None:
    folder = tmp_path / "in"
    if what == "a file":
        folder.touch()
    elif what != "missing":
        folder.mkdir()
    if what == "only hidden files":
        make(folder, ".DS_Store", ".cache/a.png")
    elif what == "only empty folders":
        (folder / "a" / "b").mkdir(parents=True)
    expected = "no folder at" if what in ("missing", "a file") else "holds no files; it needs images and captions"
    with pytest.raises(UserError, match=expected):
        find(folder, CaptionRules())


@pytest.mark.parametrize("path", ["a.png", "a/b.c.png", "a.b/c", "a.b/.c", ".a", "a", "x/..b.png", "č/ž.jpg"])
def test_keys_are_paths_without_suffix(path: str) -> None:
    assert key_of(path) == str(PurePosixPath(path).with_suffix(""))


def test_keys_below_a_folder() -> None:
    files = ["captions/a.txt", "images/a.PNG", "images/b/c.v1.jpg", "images/d.svg"]
    assert list(by_key(files, (".png", ".jpg"), "images/")) == [("a", "images/a.PNG"), ("b/c.v1", "images/b/c.v1.jpg")]

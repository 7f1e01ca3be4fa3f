"""Two processes that embed into one folder: neither takes the other's unfinished files away."""

import threading
from pathlib import Path

import pytest

from shards.embedding.staging import STAGING_NAME, Staging


def test_who_is_done_first_leaves_the_folder_to_who_is_still_at_work(tmp_path: Path) -> None:
    one, other = Staging(tmp_path), Staging(tmp_path)
    one.write_bytes(tmp_path / "a", b"1")
    with other.write(tmp_path / "b") as file:
        file.write(b"2")
        one.remove()
        assert (tmp_path / STAGING_NAME).is_dir()
    other.write_bytes(tmp_path / "c", b"3")
    other.remove()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2", "c": b"3"}


def test_files_of_one_name_at_once_are_each_whole(tmp_path: Path) -> None:
    """As of two containers with one host name and equal process numbers: here they are one process."""
    one, other = Staging(tmp_path), Staging(tmp_path)
    with one.write(tmp_path / "a") as first, other.write(tmp_path / "a") as second:
        first.write(b"first ")
        second.write(b"second")
        first.write(b"whole")
    assert (tmp_path / "a").read_bytes() in (b"first whole", b"second")


def test_what_fails_leaves_nothing_and_a_killed_process_goes_with_the_next(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Staging(tmp_path).write(tmp_path / "a"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    killed = Staging(tmp_path)
    killed.write_bytes(tmp_path / STAGING_NAME / "unit", b"x")
    del killed  # its lock is gone, its files are there
    assert (tmp_path / STAGING_NAME / "unit").is_file()
    Staging(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []


def test_coming_and_going_at_once_never_fails(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(50):
                staging = Staging(tmp_path)
                staging.write_bytes(tmp_path / f"{name}{i}", b"x")
                staging.remove()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(list(tmp_path.iterdir())) == 200

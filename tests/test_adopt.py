"""Tars of other makers become a shard folder where they lie, and are never written to."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import adopt
from shards.adopt import AdoptOptions
from shards.embedding.staging import Staging
from shards.inspect import __main__ as inspect
from shards.share import Share
from tests import foreign
from tests.conftest import REPOSITORY
from tests.running import train
from toolkit.data.dataset import read_decoded
from toolkit.data.decoding import decode_image, fit_square
from toolkit.data.shard_format import Manifest
from toolkit.data.shard_reader import ShardSet, _json_string
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError


def run(folder: Path, **options) -> None:
    adopt.main(AdoptOptions(folder, **({"size": 16, "encoder": "hashing"} | options)))


def contents(folder: Path) -> dict[str, str]:
    """What the set is made of; records hold times."""
    return {p.name: file_sha256(p) for p in folder.iterdir() if p.is_file()}


def skipped(folder: Path) -> dict[str, str]:
    return {entry["path"]: entry["reason"] for entry in json.loads((folder / "report.json").read_text())["skipped"]}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    foreign.img2dataset_folder(tmp_path / "set")
    return tmp_path / "set"


def test_samples_are_those_of_the_tars_and_the_tars_stay_as_they_are(tmp_path):
    captions = foreign.img2dataset_folder(tmp_path / "set")
    before = contents(tmp_path / "set")
    run(tmp_path / "set")
    assert before.items() <= contents(tmp_path / "set").items()
    shards = ShardSet(tmp_path / "set")
    samples = [shards.read(i) for i in range(len(shards))]
    assert [s.captions for s in samples] == [(c,) for c in captions.values()]  # in the order of the tars
    numbers = [int(key[-4:]) for key in captions]
    assert [s.image for s in samples] == [foreign.jpeg(number) for number in numbers]
    expected = HashingEncoder().encode(list(captions.values())).numpy()
    np.testing.assert_allclose(np.stack([s.vectors[0].numpy() for s in samples]), expected, atol=1e-3)
    assert shards.manifest.samples == shards.manifest.distinct_captions == 8
    assert skipped(tmp_path / "set") == {"00000.tar/000000004": "empty caption"}


def test_what_img2dataset_did_not_get_is_told(tars, capsys):
    run(tars)
    assert "got 10 of 12 images" in capsys.readouterr().out
    (tars / "00000_stats.json").write_text("[]")
    (tars / "00001_stats.json").unlink()
    run(tars, size=32)
    assert "images" not in capsys.readouterr().out


@pytest.mark.parametrize("mode", ("crop", "pad", "stretch"))
def test_images_are_fitted_when_read(tars, mode):
    run(tars, resize_mode=mode)
    shards = ShardSet(tars)
    for i in range(len(shards)):
        sample, image = read_decoded(shards, i)
        expected = np.asarray(fit_square(decode_image(sample.image), 16, mode))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_inspect_finds_it_sound_and_a_flipped_byte_bad(tars, capsys):
    run(tars)
    inspect.main(inspect.InspectOptions(tars, verify=True))
    path = tars / "00001.text.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256"):
        inspect.main(inspect.InspectOptions(tars, verify=True))


def test_what_cannot_be_used_is_left_out_by_name(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    whole = foreign.sample(0, "a plate")
    bad = {
        "bare": {"txt": b"no image here", "json": b'{"status": "failed_to_download"}'},
        "mute": {"jpg": whole["jpg"]},
        "half": whole | {"jpg": whole["jpg"][:-200]},
        "void": whole | {"jpg": b""},
        "latin": whole | {"txt": "ćevapčići".encode("cp1250")},
        "bell": whole | {"txt": b"a\x07b"},
    }
    foreign.write_tar(folder / "a.tar", {"good": whole} | bad)
    foreign.write_tar(folder / "b.tar", {"bare": bad["bare"]})
    run(folder)
    found = {path: reason.partition(":")[0] for path, reason in skipped(folder).items()}
    assert found == {
        "a.tar/bare": "no image",
        "a.tar/mute": "no caption",
        "a.tar/half": "bad image",
        "a.tar/void": "bad image",
        "a.tar/latin": "not UTF-8",
        "a.tar/bell": "control character",
        "b.tar/bare": "no image",
    }
    manifest = Manifest.load(folder)
    assert manifest.samples == 1 and [shard.name for shard in manifest.shards] == ["a.tar"]


def test_undecoded_images_are_kept_and_small_ones_left_out(tars):
    members = foreign.sample(0, "cut short")
    foreign.write_tar(tars / "00002.tar", {"x": members | {"jpg": members["jpg"][:-200]}})
    run(tars, decode=False)
    assert len(ShardSet(tars)) == 9
    run(tars, min_side=21, overwrite=True)  # sizes of draw(0..4): 20x20, 33x21, 21x33, 64x48, 17x50
    small = {path for path, reason in skipped(tars).items() if reason.startswith("too small")}
    assert small == {"00000.tar/000000000", "00001.tar/000010000"}
    assert len(ShardSet(tars)) == 6


def test_captions_of_a_json_field(tars):
    escaped = foreign.sample(0, "of the .txt", blip='a "ć"\n')
    samples = {
        "y": escaped,
        "z": foreign.sample(1, "no field"),
        "utf8": escaped | {"json": json.dumps({"blip": "žito"}, ensure_ascii=False).encode()},
        "odd": escaped | {"json": rb'{"blip": "\u017Eito"}'},
    }
    foreign.write_tar(tars / "00002.tar", samples)
    run(tars, caption_key="blip")
    shards = ShardSet(tars)
    texts = {caption for i in range(len(shards)) for caption in shards.read(i).captions}
    assert texts == {f"a plate of {n}, {name}" for name, n in [("00000", n) for n in range(5)]} | {
        f"a plate of {n}, 00001" for n in range(4)
    } | {'a "ć"', "žito"}
    reasons = skipped(tars)
    assert reasons["00002.tar/odd"].startswith("odd caption") and reasons["00002.tar/z"].startswith("no caption")


def test_captions_are_read_as_they_were_embedded(tmp_path):
    (tmp_path / "set").mkdir()
    decomposed = "\ufeffc\u0301evapi \n on a\u00a0plate"
    foreign.write_tar(tmp_path / "set" / "0.tar", {"k": foreign.sample(0, decomposed)})
    run(tmp_path / "set")
    assert ShardSet(tmp_path / "set").read(0).captions == ("\u0107evapi on a plate",)


@pytest.mark.dist
def test_the_number_of_processes_changes_nothing(tars, tmp_path):
    shutil.copytree(tars, tmp_path / "other")
    run(tars, workers=1)
    run(tmp_path / "other", workers=2)
    one, two = contents(tars), contents(tmp_path / "other")
    manifests = [Manifest.load(folder) for folder in (tars, tmp_path / "other")]
    assert manifests[0].shards == manifests[1].shards and manifests[0].index_sha256 == manifests[1].index_sha256
    assert {k: v for k, v in one.items() if k != "manifest.json"} == {
        k: v for k, v in two.items() if k != "manifest.json"
    }


def test_shares_meet_in_the_folder(tars, tmp_path, capsys):
    shutil.copytree(tars, tmp_path / "whole" / "set")
    run(tmp_path / "whole" / "set")
    run(tars, share="1/2")
    assert not (tars / "manifest.json").exists() and not (tars / "00000.text.npy").exists()
    run(tars, share="0/2")
    assert contents(tars) == contents(tmp_path / "whole" / "set")
    assert Share.parse("1/2").mine(["a", "b", "c"]) == ["b"]


def test_the_same_command_again_does_nothing_and_new_tars_are_added(tars, capsys):
    run(tars)
    first, old = contents(tars), np.load(tars / "index.npy")
    before = (tars / "00000.text.npy").stat().st_mtime_ns
    run(tars)
    assert "nothing new" in capsys.readouterr().out and contents(tars) == first
    foreign.write_tar(tars / "00002.tar", {"new": foreign.sample(5, "a new plate")})
    run(tars)
    shards = ShardSet(tars)
    np.testing.assert_array_equal(shards.index[: len(old)], old)
    assert shards.read(len(old)).captions == ("a new plate",)
    assert (tars / "00000.text.npy").stat().st_mtime_ns == before  # was not made again
    assert [p.name for p in tars.glob("index*.npy")] == [shards.manifest.index_name]


class Killed(BaseException):
    """Not caught by anything, like a kill."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends when the file of this number is complete but has not got its name."""
    written, whole = [], Staging.write

    @contextlib.contextmanager
    def write(self: Staging, path: Path):
        with whole(self, path) as file:
            yield file
            written.append(path)
            if len(written) == number:
                raise Killed

    monkeypatch.setattr(Staging, "write", write)


@pytest.mark.parametrize("number", range(1, 10))
def test_killed_at_any_file_it_goes_on_to_the_same_set(tars, tmp_path, monkeypatch, number):
    shutil.copytree(tars, tmp_path / "whole" / "set")
    run(tmp_path / "whole" / "set")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(number, patch)
        run(tars)
    assert not (tars / "manifest.json").exists()
    run(tars)
    assert contents(tars) == contents(tmp_path / "whole" / "set")


@pytest.mark.parametrize("number", range(1, 7))
def test_killed_while_adding_the_old_set_stays_readable(tars, monkeypatch, number):
    run(tars)
    foreign.write_tar(tars / "00002.tar", {"new": foreign.sample(5, "a new plate")})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(number, patch)
        run(tars)
    assert [ShardSet(tars).read(i).captions for i in range(8)]
    assert len(ShardSet(tars)) == 8 and file_sha256(tars / "index.npy") == Manifest.load(tars).index_sha256
    run(tars)
    assert ShardSet(tars).read(8).captions == ("a new plate",)


def test_what_is_done_is_not_done_again(tars, monkeypatch):
    done, worked_on = adopt.adopt_tar, []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(4, patch)  # vectors, rows and record of the first tar come before
        run(tars)
    monkeypatch.setattr(adopt, "adopt_tar", lambda tar, *rest: worked_on.append(tar.name) or done(tar, *rest))
    run(tars)
    assert worked_on == ["00001.tar"]


def test_a_changed_tar_is_refused_by_name_until_overwrite(tars):
    run(tars)
    before = contents(tars)
    os.utime(tars / "00001.tar", ns=(1, 1))
    run(tars)  # another time, the same content
    foreign.write_tar(tars / "00001.tar", {"k": foreign.sample(0, "changed")})
    with pytest.raises(UserError, match=r"00001\.tar has changed since"):
        run(tars)
    assert {k: v for k, v in contents(tars).items() if k != "00001.tar"} == {
        k: v for k, v in before.items() if k != "00001.tar"
    }
    run(tars, overwrite=True)
    shards = ShardSet(tars)
    assert len(shards) == 5 and shards.read(4).captions == ("changed",)
    (tars / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"00001\.tar was adopted and is gone"):
        run(tars)
    run(tars, overwrite=True)
    assert len(ShardSet(tars)) == 4
    run(tars)  # the tar that is gone is forgotten


@pytest.mark.parametrize("change", ("a byte, at another time", "the length, at the same time"))
def test_a_change_is_noticed_by_size_or_by_time_and_content(tars, change):
    run(tars)
    path = tars / "00001.tar"
    data, time = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    if change.startswith("a byte"):
        data[ShardSet(tars).index[-1, 3]] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    else:
        path.write_bytes(data + bytes(512))
        os.utime(path, ns=(time, time))
    with pytest.raises(UserError, match=r"00001\.tar has changed since"):
        run(tars)


def test_other_options_are_refused_until_overwrite(tars):
    run(tars)
    with pytest.raises(UserError, match="--caption_key ''"):
        run(tars, caption_key="blip")
    run(tars, size=32)  # asked when images are read: no tar need be looked at
    assert Manifest.load(tars).resolution == 32
    run(tars, caption_key="blip", overwrite=True)
    assert ShardSet(tars).read(0).captions == ("a plate of 2, 00000",)


def test_a_damaged_tar_is_named_and_nothing_is_lost(tars, capsys):
    path = tars / "00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-12000])
    with pytest.raises(UserError, match=r"00001\.tar.*damaged"):
        run(tars)
    assert not (tars / "manifest.json").exists()
    path.write_bytes(whole)
    run(tars)
    assert len(ShardSet(tars)) == 8


def test_a_folder_without_tars_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder at"):
        run(tmp_path / "x")
    with pytest.raises(UserError, match=r"holds no \.tar"):
        run(tmp_path)


def test_a_folder_of_ones_own_shards_is_refused(shard_folder):
    with pytest.raises(UserError, match="shard folder already"):
        run(shard_folder)
    assert not (shard_folder / "adopted").exists()


@pytest.mark.parametrize("wrong", ({"size": 4}, {"min_side": -1}, {"decode": False, "min_side": 5}, {"workers": 999}))
def test_options_out_of_range(tmp_path, wrong):
    with pytest.raises(UserError, match="must be"):
        AdoptOptions(tmp_path, **({"size": 16} | wrong))


def test_training_runs_on_an_adopted_set_as_a_command(tars, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "shards.adopt", str(tars), "--size", "16", "--encoder", "hashing"]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment)
    train(tars, tmp_path / "run", iters=2)
    assert (tmp_path / "run" / "training_log.json").read_text().count('"step"') >= 2


def test_pyarrow_is_not_needed(tars, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run(tars)
    assert len(ShardSet(tars)) == 8


@pytest.mark.parametrize("text", ["[" * 100_000, '["a"]', "17", "a caption", '"half'])
def test_a_text_that_is_no_json_string_is_a_damaged_one(text: str) -> None:
    with pytest.raises(ValueError):
        _json_string(text)
    assert _json_string('"\\u0107evapi"') == "ćevapi"

"""Inspection calls sound shards sound, and finds what is wrong with others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.inspect import __main__ as inspect_command
from shards.inspect import checks
from shards.inspect.__main__ import InspectOptions
from tests.conftest import REPOSITORY
from toolkit.command_line import data_first
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(shard_folder, tmp_path / "copy")
    return tmp_path / "copy"


def inspect(folder: Path, capsys, **options) -> tuple[dict, str]:
    """The printed JSON, and the error line or ''."""
    failed = ""
    try:
        inspect_command.main(InspectOptions(folder, json=True, **options))
    except UserError as error:
        failed = str(error)
    return json.loads(capsys.readouterr().out), failed


def states(answer: dict) -> dict[str, str]:
    return {found["name"]: found["state"] for found in answer["checks"]}


def edit_member(folder: Path, sample: int, column: int, change) -> None:
    """Overwrite bytes of a member in place; `change`: bytes -> bytes of the same length."""
    shard, *spans = np.load(folder / "index.npy")[sample]
    offset, size = spans[column : column + 2]
    path = folder / f"shard-{shard:05d}.tar"
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = change(bytes(data[offset : offset + size]))
    path.write_bytes(data)


def test_sound_shards(shard_folder: Path, capsys) -> None:
    answer, failed = inspect(shard_folder, capsys, verify=True)
    assert failed == "" and set(states(answer).values()) == {"ok"}
    assert (answer["samples"], answer["resolution"], answer["image_format"]) == (24, 16, "PNG")
    assert (answer["encoder"], answer["dimension"], answer["distinct_captions"]) == ("hashing", 768, 7)
    assert len(answer["examples"]) == 5


def test_lines_for_people(shard_folder: Path, capsys) -> None:
    inspect_command.main(InspectOptions(shard_folder))
    lines = capsys.readouterr().out.splitlines()
    assert "samples           24" in lines
    assert any(line.split() == ["not", "checked", "sha256", "add", "--verify"] for line in lines)
    assert sum(line.startswith("ok ") for line in lines) == 6
    assert any("ćevapi drawn as a disc" in line for line in lines[-5:])


def test_hash_finds_one_flipped_bit(copy: Path, capsys) -> None:
    edit_member(copy, 7, 2, lambda text: bytes([text[0] ^ 1]) + text[1:])
    assert inspect(copy, capsys)[0]["samples"] == 24
    answer, failed = inspect(copy, capsys, verify=True)
    assert states(answer)["sha256"] == "BAD" and "shard-00000.tar has changed" in str(answer["checks"])
    assert failed.startswith(f"{copy} failed: sha256")


def test_truncated_and_missing_shards(copy: Path, capsys) -> None:
    (copy / "shard-00001.tar").unlink()
    answer, failed = inspect(copy, capsys, verify=True)
    assert states(answer) == {"sizes": "BAD", "sha256": "BAD", "samples": "not checked"}
    assert failed.endswith("failed: sizes, sha256")


@pytest.mark.parametrize(
    "column, change, expected",
    [
        (0, lambda data: data[:50] + bytes(len(data) - 50), {"images"}),
        (2, lambda data: b" " * len(data), {"captions", "encoder"}),
        (2, lambda data: b"\xff" * len(data), {"samples"}),
        (4, lambda data: data[:128] + bytes(len(data) - 128), {"samples"}),
        (4, lambda data: data[:128] + b"\x00\x7e" * ((len(data) - 128) // 2), {"samples"}),
        (4, lambda data: bytes(len(data)), {"samples"}),
    ],
    ids=["image", "blank", "not utf-8", "zero vector", "nan", "no npy"],
)
def test_damaged_members(copy: Path, capsys, column: int, change, expected: set[str]) -> None:
    edit_member(copy, 5, column, change)
    answer, _ = inspect(copy, capsys)
    assert {name for name, state in states(answer).items() if state == "BAD"} == expected


class Turned(HashingEncoder):
    """Another encoder of the same width: the first with shuffled coordinates."""

    name = "turned"

    def encode(self, captions: list[str]) -> torch.Tensor:
        return super().encode(captions)[:, torch.randperm(768, generator=torch.Generator().manual_seed(0))]


def test_other_encoder_of_the_same_width(shard_folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(checks, "load_encoder", lambda name, weights: Turned())
    answer, failed = inspect(shard_folder, capsys, encoder="turned")
    assert failed.endswith("failed: encoder")
    assert "cosine mean" in answer["checks"][-1]["detail"] and "control" in answer["checks"][-1]["detail"]


def test_vectors_that_belong_to_other_captions(copy: Path, capsys) -> None:
    """Right encoder, wrong order: the identity fits, the samples do not."""
    swapped = ShardSet(copy).read(1).vectors[0].numpy().astype("<f2").tobytes()
    edit_member(copy, 2, 4, lambda data: data[:-1536] + swapped)
    answer, _ = inspect(copy, capsys)
    assert states(answer)["encoder"] == "BAD" and "probe captions min 1.0000" in answer["checks"][-1]["detail"]


def test_manifest_that_names_another_encoder(copy: Path, capsys) -> None:
    identity = EncoderIdentity.of(Turned())
    fields = json.loads((copy / "manifest.json").read_text())
    fields["encoder"]["probe_vectors"] = identity.probe_vectors
    (copy / "manifest.json").write_text(json.dumps(fields))
    assert states(inspect(copy, capsys)[0])["encoder"] == "BAD"


def test_encoder_that_cannot_be_loaded_is_no_failure(shard_folder: Path, capsys, monkeypatch) -> None:
    def offline(name: str, weights: Path | None) -> None:
        raise UserError("cannot load: no network")

    monkeypatch.setattr(checks, "load_encoder", offline)
    answer, failed = inspect(shard_folder, capsys)
    assert failed == "" and answer["checks"][-1]["state"] == "not checked"
    assert answer["checks"][-1]["detail"] == "cannot load: no network"


def test_folder_may_stand_first(shard_folder: Path) -> None:
    assert data_first([str(shard_folder), "--verify", "true"]) == ["--data", str(shard_folder), "--verify", "true"]
    assert data_first(["--data", "x"]) == ["--data", "x"] and data_first([]) == []


def test_help_shows_how_it_was_started() -> None:
    by_module = subprocess.run([sys.executable, "-m", "shards.inspect", "--help"], capture_output=True, text=True)
    assert by_module.stdout.startswith("usage: python -m shards.inspect [--config CONFIG] --data DATA")
    create = REPOSITORY / "shards" / "create.py"
    by_path = subprocess.run([sys.executable, create, "--help"], cwd="/", capture_output=True, text=True)
    assert by_path.stdout.startswith("usage: create.py [--config CONFIG] --input INPUT")


def test_no_shard_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no manifest.json"):
        inspect_command.main(InspectOptions(tmp_path))
    with pytest.raises(UserError, match="--samples is 0"):
        InspectOptions(tmp_path, samples=0)


def test_the_name_hides_no_standard_module() -> None:
    """shards/ stands first on sys.path when a script in it is started by its path."""
    import importlib.util

    folder = str(Path(inspect_command.__file__).parents[1])
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.find_spec("dis")  # not yet imported modules are found the same way
        assert spec and not spec.origin.startswith(folder)
        assert importlib.machinery.PathFinder.find_spec("inspect", sys.path).origin.endswith("/inspect.py")
    finally:
        sys.path.remove(folder)

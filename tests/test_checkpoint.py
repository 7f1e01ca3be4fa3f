"""Checkpoints: whole or not there, verified, pruned, and never a pickle."""

import json

import pytest
import torch

from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.inference.sampling import load_generator
from toolkit.networks.architecture import EARLIER, ModelConfig
from toolkit.networks.models import Generator
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import GENERATOR, MANIFEST, NETWORKS, OPTIMIZERS, STATE, GeneratorFile, Snapshot

CONFIG = ModelConfig(resolution=16, base_ch=2, z_dim=4, d_scales=1, **EARLIER)


def snapshot(step: int) -> Snapshot:
    torch.manual_seed(step)
    tensors = dict(Generator(CONFIG).state_dict())
    generator = GeneratorFile(tensors, CONFIG, EncoderIdentity.of(HashingEncoder()), step)
    return Snapshot(generator, {"G.w": torch.randn(3)}, {"G.0.step": torch.tensor(1.0)}, {"step": step})


def test_round_trip(tmp_path):
    saved = snapshot(7)
    folder = checkpoint.save(tmp_path, saved, keep=2)
    loaded = checkpoint.load(folder)
    assert folder.name == "ckpt_0000007" and loaded.state == {"step": 7} and loaded.generator[1:] == saved.generator[1:]
    assert all(
        torch.equal(loaded.generator.tensors[name], saved.generator.tensors[name]) for name in saved.generator.tensors
    )
    assert torch.equal(loaded.networks["G.w"], saved.networks["G.w"])
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_equal_snapshots_give_equal_bytes(tmp_path):
    a, b = (checkpoint.save(tmp_path / name, snapshot(1), keep=2) for name in "ab")
    for name in (GENERATOR, NETWORKS, OPTIMIZERS, STATE, MANIFEST):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("name", [GENERATOR, NETWORKS, OPTIMIZERS, STATE, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damage_is_named_and_the_previous_one_is_found(tmp_path, name, damage):
    older, newer = (checkpoint.save(tmp_path, snapshot(step), keep=3) for step in (1, 2))
    path = newer / name
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[len(data) // 2] ^= 16
        path.write_bytes(bytes({"flip": data, "truncate": data[: len(data) // 2], "empty": b""}[damage]))
    blamed = (
        r"\w+\.(safetensors|json)" if (name, damage) == (MANIFEST, "flip") else name
    )  # a changed hash blames its file
    with pytest.raises(UserError, match=blamed):
        checkpoint.load(newer)
    found, passed_over = checkpoint.newest_valid(tmp_path)
    assert found == older and len(passed_over) == 1


def test_pruning_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, snapshot(step), keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["ckpt_0000004", "ckpt_0000005"]
    checkpoint.save(tmp_path, snapshot(10_000_000), keep=0)  # eight digits still sort by number
    assert checkpoint.checkpoints(tmp_path)[-1].name == "ckpt_10000000"


def test_a_rolled_back_run_keeps_its_new_checkpoint(tmp_path):
    """Steps 5 to 20 exist, the run went back to 5 and saves step 7: that one is new, whatever its number."""
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path, snapshot(step), keep=0)
    later = checkpoint.later_in(tmp_path, tmp_path / "ckpt_0000010")
    assert [path.name[-2:] for path in later] == ["15", "20"]
    assert not checkpoint.later_in(tmp_path, tmp_path / "elsewhere" / "ckpt_0000010")
    assert checkpoint.save(tmp_path, snapshot(7), keep=2).is_dir()
    assert [path.name[-2:] for path in checkpoint.checkpoints(tmp_path)] == ["05", "07", "10", "15", "20"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path, monkeypatch, failing):
    first = checkpoint.save(tmp_path, snapshot(1), keep=2)
    calls, real = [], checkpoint.save_file

    def save_file(*arguments):
        calls.append(arguments)
        if len(calls) > failing:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(tmp_path, snapshot(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == [first.name] and not checkpoint.find_problem(first)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    bad = snapshot(1)
    bad.networks["G.w"][0] = float("nan")
    with pytest.raises(UserError, match=r"G\.w is no longer finite"):
        checkpoint.save(tmp_path, bad, keep=2)
    assert not list(tmp_path.iterdir())


def test_the_generator_file_alone_is_enough(tmp_path):
    folder = checkpoint.save(tmp_path / "run", snapshot(3), keep=2)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / GENERATOR).write_bytes((folder / GENERATOR).read_bytes())
    text, seeds = torch.nn.functional.normalize(torch.randn(2, 768), dim=1), [4, 5]
    images = [load_generator(path).sample(text, seeds) for path in (tmp_path / "run", folder, alone, alone / GENERATOR)]
    assert all(torch.equal(image, images[0]) for image in images) and images[0].shape == (2, 3, 16, 16)


def test_a_foreign_or_hostile_file_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="no generator of this toolkit"):
        load_generator(tmp_path / "model.pt")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_generator(tmp_path / "nothing")
    folder = checkpoint.save(tmp_path, snapshot(1), keep=2)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert not checkpoint.find_problem(folder)  # names in a manifest are never opened, only the five we know

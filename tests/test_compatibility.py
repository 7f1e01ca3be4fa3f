"""What a checkpoint may be resumed with: its own networks, encoder and data; other options are taken on and told."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.running import PLAIN, TENSORS, TINY, logged, train
from toolkit.config import ResolvedConfig
from toolkit.data.shard_format import MANIFEST_NAME
from toolkit.data.shard_reader import ShardSet
from toolkit.durable import file_sha256
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.networks.architecture import ModelConfig
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import MANIFEST, STATE, checkpoint_name
from toolkit.run_folder.snapshot import restore_snapshot, take_snapshot
from toolkit.training.adaptive import Adaptive
from toolkit.training.trainer import Trainer

FORMAT_1 = Path(__file__).parent / "fixtures" / "format_1" / "ckpt_0000003"
"""Written by the toolkit of format 1 for networks of one layer; every tensor counts up in eighths."""


def trainer(shard_folder: Path, **options) -> Trainer:
    config = ResolvedConfig(**{"data": str(shard_folder), **TINY, **options})
    return Trainer(config, Accelerator(cpu=True), ShardSet(shard_folder))


OTHER = {
    "resolution": 32, "base_ch": 8, "z_dim": 9, "cond_dim": 512, "d_scales": 1, "g_norm": "batch",
    "g_modulation": "text+noise", "g_text_blocks": True, "attention": "8", "skip_excitation": True,
    "minibatch_std": True, "std_group": 2, "g_text_norm": True, "match_width": 16,
    "frozen_width": 32, "frozen_kernel": 3, "frozen_std": False,
    "residual_scale": 0.5, "d_projections": 2, "d_base_ch": 2,
    "frozen_backbone": "timm/test_vit", "frozen_size": 64,
}  # fmt: skip


@pytest.mark.parametrize("names", [*([name] for name in OTHER), list(OTHER)], ids=lambda names: "+".join(names))
def test_another_architecture_is_refused_with_every_field_that_differs(shard_folder, names):
    assert set(OTHER) == {field.name for field in dataclasses.fields(ModelConfig)}
    one = trainer(shard_folder)
    before, snapshot = one.fingerprint(), take_snapshot(one)
    theirs = dataclasses.replace(snapshot.generator.config, **{name: OTHER[name] for name in names})
    with pytest.raises(UserError, match="another architecture") as refused:
        restore_snapshot(one, snapshot._replace(generator=snapshot.generator._replace(config=theirs)))
    for name in OTHER:
        told = f"{name} {OTHER[name]} -> {getattr(one.config, name)}"
        assert (told in str(refused.value)) == (name in names)
    assert torch.equal(before, one.fingerprint())


def with_manifest(shard_folder: Path, copy: Path, change) -> Path:
    """A copy of the shards whose manifest `change` has altered."""
    shutil.copytree(shard_folder, copy)
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    change(manifest)
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    return copy


def turned(encoder: dict) -> None:
    vectors = EncoderIdentity.from_json(encoder).vectors()
    captions = encoder["probe_captions"]
    encoder |= dataclasses.asdict(EncoderIdentity.from_vectors(encoder["name"], captions, vectors.roll(1, dims=1)))


@pytest.mark.parametrize("change,said", [
    (lambda m: m["encoder"].update(name="ViT-L-14/openai"), "another encoder: hashing .768-d. against ViT-L-14/openai"),
    (lambda m: turned(m["encoder"]), "another encoder: same name hashing, other weights: cosine -?0.0"),
    (lambda m: m["shards"][0].update(sha256="0" * 64), "are not those the checkpoint was trained on .fingerprint"),
])  # fmt: skip
def test_other_data_or_another_encoder_is_refused_and_nothing_is_lost(shard_folder, tmp_path, change, said):
    run = tmp_path / "run"
    train(shard_folder, run, iters=1)
    files = {path: path.read_bytes() for path in run.glob("ckpt_*/*")}
    with pytest.raises(UserError, match=said):
        train(with_manifest(shard_folder, tmp_path / "other", change), run, iters=2)
    assert {path: path.read_bytes() for path in run.glob("ckpt_*/*")} == files
    train(shard_folder, run, iters=2)


def test_other_options_are_taken_on_and_told_and_places_are_not_mentioned(shard_folder, tmp_path, capsys):
    shutil.copytree(shard_folder, tmp_path / "moved")
    train(shard_folder, tmp_path / "run", iters=2)
    shutil.move(tmp_path / "run", tmp_path / "renamed")
    capsys.readouterr()
    train(tmp_path / "moved", tmp_path / "renamed", iters=4, lr_g=3e-4, loss="nonsaturating", batch=4, keep=0)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed since then: ")]
    changes = ["batch 8 -> 4", "iters 2 -> 4", "keep 3 -> 0", "loss hinge -> nonsaturating", "lr_g 0.0001 -> 0.0003"]
    assert sorted(line.removeprefix("changed since then: ") for line in told) == changes
    lines = logged(tmp_path / "renamed")
    assert [line["lr_g"] for line in lines] == [1e-4, 1e-4, 3e-4, 3e-4]
    assert [line["images_seen"] for line in lines] == [8, 16, 20, 24]


def test_what_no_longer_adapts_takes_the_value_of_the_config(shard_folder, tmp_path):
    """After 16 steps at target 0.1: p = 16 * 8 / 1000."""
    adapting = {"adaptive_augment": True, "adaptive_r1": True, "ada_kimg": 1.0, "ada_target": -0.9}
    train(shard_folder, tmp_path, iters=17, **adapting)
    assert logged(tmp_path)[-1]["augment_p"] == 0.128
    train(shard_folder, tmp_path, iters=18, augment_p=0.25)
    assert logged(tmp_path)[-1]["augment_p"] == 0.25 and logged(tmp_path)[-1]["r1_scale"] == 1.0


def counting(*shape: int, start: float) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) / 8 + start).reshape(shape)


def test_a_checkpoint_of_format_1_loads_with_defaults_for_what_it_did_not_have():
    snapshot = checkpoint.load(FORMAT_1)
    assert {"adaptive", "rollbacks"}.isdisjoint(snapshot.state)
    options = {"resolution": 16, "base_ch": 1, "z_dim": 2, "cond_dim": 2, "d_scales": 1, "batch": 8, "seed": 5}
    config = ResolvedConfig(**{**PLAIN, **options, "d_steps": 2})
    networks = {"G": nn.Linear(2, 3), "D": nn.Linear(3, 1)}
    phases = {
        name: SimpleNamespace(network=network, optimizer=torch.optim.Adam(network.parameters(), 0.5, fused=True))
        for name, network in networks.items()
    }
    manifest = SimpleNamespace(encoder=snapshot.generator.identity, fingerprint="ab" * 32)
    stand_in = SimpleNamespace(
        config=config, shards=SimpleNamespace(manifest=manifest), accelerator=SimpleNamespace(scaler=None),
        ema=SimpleNamespace(module=nn.Linear(2, 3), updates=0), profiles={}, phases=phases,
        unwrap=lambda network: network,
        adaptive=Adaptive(config, 2, 0.5, 8), rollbacks=7, step_number=0, position=0, wandb_run_id="x", device="cpu",
    )  # fmt: skip
    changed = restore_snapshot(stand_in, snapshot)
    assert (stand_in.step_number, stand_in.position, stand_in.ema.updates) == (3, 24, 3)
    assert stand_in.rollbacks == 0 and stand_in.wandb_run_id is None
    assert stand_in.adaptive.state() == Adaptive(config, 2, 0.5, 8).state()
    assert set(changed) == {"iters 3 -> 100000", "d_steps 1 -> 2", "workers 2 -> auto"}
    for name, start in (("G", 2.0), ("D", 4.0)):
        weight, bias = networks[name].parameters()
        assert torch.equal(weight, counting(*weight.shape, start=start))
        assert torch.equal(bias, counting(*bias.shape, start=start + 1))
        for index, moments in phases[name].optimizer.state_dict()["state"].items():
            assert moments["step"] == 3 and torch.equal(moments["exp_avg"].flatten()[:1], torch.tensor([6.0 + index]))
            assert moments["exp_avg_sq"].flatten()[0] == 8 + index
        assert phases[name].optimizer.param_groups[0]["lr"] == 0.5
    assert torch.equal(stand_in.ema.module.bias, counting(3, start=1))
    assert snapshot.generator.identity.vectors().tolist() == [pytest.approx([0.6, 0.8], abs=1e-3)]


def test_a_run_begun_in_format_1_goes_on_bitwise(shard_folder, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(shard_folder, whole, iters=6, r1_interval=4)
    train(shard_folder, run, iters=4, r1_interval=4)
    folder = run / checkpoint_name(4)
    state = json.loads((folder / STATE).read_text())
    del state["adaptive"], state["rollbacks"]
    (folder / STATE).write_text(json.dumps(state))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["version"] = 1
    manifest["files"][STATE] = {"bytes": (folder / STATE).stat().st_size, "sha256": file_sha256(folder / STATE)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    train(shard_folder, run, iters=6, r1_interval=4)
    name = checkpoint_name(6)
    assert [file for file in TENSORS if (run / name / file).read_bytes() != (whole / name / file).read_bytes()] == []
    assert logged(run) == logged(whole)


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_a_checkpoint_of_an_unknown_format_is_refused_by_its_number(shard_folder, tmp_path, version):
    train(shard_folder, tmp_path, iters=1)
    for folder in checkpoint.checkpoints(tmp_path):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | {"version": version}))
    with pytest.raises(UserError, match=f"format version {version}, this toolkit reads 1, 2"):
        checkpoint.load(tmp_path / checkpoint_name(1))
    with pytest.raises(UserError, match="holds checkpoints, but none is valid"):
        train(shard_folder, tmp_path, iters=2)

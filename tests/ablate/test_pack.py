"""What travels to another machine, and what comes back."""

import subprocess

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.ablate import pack
from benchmarks.ablate.pack import pack_best, pack_shards, pack_weights, unpack_weights
from tests.ablate.made import results_of
from tests.conftest import REPOSITORY
from tests.scored import write_run
from toolkit.data.dataset import read_decoded
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.inference.sampling import load_generator


def test_smaller_shards_hold_the_same_samples(place, tmp_path):
    one, small = ShardSet(place / "shards"), ShardSet(pack_shards(place / "shards", tmp_path / "small", 8, 90))
    assert len(small) == len(one) and small.manifest.resolution == 8
    assert small.manifest.encoder == one.manifest.encoder
    for number in (0, 71):
        (before, wide), (after, narrow) = (read_decoded(shards, number) for shards in (one, small))
        assert after.captions == before.captions and torch.equal(after.vectors, before.vectors)
        assert narrow.shape == (3, 8, 8) and abs(int(narrow[0].float().mean()) - number) <= 3  # the red level
    with pytest.raises(UserError, match="16 px, too small for 32"):
        pack_shards(place / "shards", tmp_path / "large", 32, 90)


def test_weights_come_back_within_half_precision(tmp_path):
    state = {"a": torch.randn(3, 4), "b": torch.randn(5), "zeros": torch.zeros(1000, 1000), "n": torch.tensor(0)}
    torch.save(state, tmp_path / "in.pth")
    pack_weights(tmp_path / "in.pth", tmp_path / "half.safetensors")
    unpack_weights(tmp_path / "half.safetensors", tmp_path / "out.pth")
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 1000 and found.keys() == state.keys()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in state.items()
    }
    assert torch.equal(found["b"], state["b"]) and torch.allclose(found["a"], state["a"], rtol=1e-3)
    torch.save({"a": torch.full((2, 2), 1e6)}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="a does not fit into half precision"):
        pack_weights(tmp_path / "in.pth", tmp_path / "half.safetensors")


@pytest.mark.parametrize("largest, dtype", [(10**9, torch.float32), (1, torch.float16)])
def test_the_best_generator_is_handed_back(tmp_path, monkeypatch, largest, dtype):
    results_of({"base": [50.0, 51.0], "good": [40.0, 42.0], "gone": [30.0, 31.0]}).write(tmp_path)
    for name in ("base", "good"):
        run = write_run(tmp_path / "runs" / name / "seed_0")
        (run / "ckpt_0000001" / "generator.safetensors").rename(run / "generator.safetensors")
    monkeypatch.setattr(pack, "LARGEST", largest)
    assert pack_best(tmp_path, tmp_path / "best.safetensors") == "good"
    back = load_generator(tmp_path / "best.safetensors")
    assert back.sample(torch.zeros(1, 768), [0]).shape == (1, 3, 16, 16)
    tensors = load_file(tmp_path / "best.safetensors").values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}


def test_what_is_told_where_the_arguments_are_wrong():
    script = REPOSITORY / "benchmarks" / "gpu_quality.sh"
    ended = subprocess.run(["bash", str(script), "pack"], capture_output=True, text=True)
    assert ended.returncode == 2 and "gpu_quality.sh run DIR OUT GRID.yaml MINUTES" in ended.stdout

"""Checkpoints that are damaged, foreign or hostile: passed over or refused by name, never executed, never deleted."""

import contextlib
import json
import pickle
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch

from tests.running import assert_equal_runs, train
from tests.test_checkpoint import snapshot
from toolkit.durable import file_sha256
from toolkit.errors import UserError
from toolkit.inference.sampling import load_generator
from toolkit.networks.architecture import ModelConfig
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import GENERATOR, MANIFEST, NETWORKS, OPTIMIZERS, STATE, checkpoint_name

FILES = (GENERATOR, NETWORKS, OPTIMIZERS, STATE)
DEEP = b'{"version": 2, "files": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes(data if how == "flip" else data[: len(data) // 2]))


@pytest.fixture(scope="module")
def run_of_5(shard_folder, tmp_path_factory):
    """With a checkpoint after every step."""
    run = tmp_path_factory.mktemp("five")
    train(shard_folder, run, iters=5, ckpt_every=1, keep=0)
    return run


@pytest.mark.parametrize("name,how", [
    (GENERATOR, "flip"), (NETWORKS, "truncate"), (OPTIMIZERS, "delete"), (STATE, "flip"), (MANIFEST, "truncate"),
])  # fmt: skip
def test_a_run_passes_over_damaged_checkpoints_says_so_and_ends_where_it_should(
    shard_folder, tmp_path, run_of_5, capsys, name, how
):
    run = shutil.copytree(run_of_5, tmp_path / "run")
    for step in (4, 5):
        damage(run / checkpoint_name(step) / name, how)
    train(shard_folder, run, iters=5)
    said = capsys.readouterr().err
    for step in (4, 5):
        assert f"passing over {run / checkpoint_name(step)}: {name}" in said
    assert f"resuming from {run / checkpoint_name(3)} at step 3" in said
    assert_equal_runs(run_of_5, run, 5, but=("ckpt_every", "keep"))
    assert checkpoint.find_problem(run / checkpoint_name(4))  # not deleted: step 4 was not due again


def test_nothing_valid_is_refused_and_nothing_deleted(shard_folder, tmp_path, run_of_5, capsys):
    run = shutil.copytree(run_of_5, tmp_path / "run")
    for step, name in enumerate((GENERATOR, NETWORKS, OPTIMIZERS, STATE, MANIFEST, NETWORKS)):
        damage(run / checkpoint_name(step) / name, ("flip", "truncate", "delete")[step % 3])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    for options, words in (({}, "none is valid; move them away"), ({"resume_from": "latest"}, "no valid checkpoint")):
        with pytest.raises(UserError, match=words):
            train(shard_folder, run, iters=6, **options)
        assert capsys.readouterr().err.count("passing over") == 6
    with pytest.raises(UserError, match=f"{checkpoint_name(1)}: {NETWORKS} has changed"):
        train(shard_folder, tmp_path / "branch", iters=6, resume_from=str(run / checkpoint_name(1)))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(params=["pickle", "torch.save"])
def poison(request, tmp_path):
    canary, file = tmp_path / "canary", tmp_path / "poison.pt"
    if request.param == "pickle":
        file.write_bytes(pickle.dumps(Canary(canary)))
        pickle.loads(file.read_bytes())
    else:
        torch.save(Canary(canary), file)
        torch.load(file, weights_only=False)
    assert canary.exists(), "the poison does not work: nothing would be tested"
    canary.unlink()
    yield file.read_bytes()
    assert not canary.exists(), "a pickle was executed"


def put(folder: Path, name: str, data: bytes, signed: bool = True) -> None:
    """Replace a file of the checkpoint, and its hash in the manifest, as somebody would who means harm."""
    (folder / name).write_bytes(data)
    if signed and name != MANIFEST:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][name] = {"bytes": len(data), "sha256": file_sha256(folder / name)}
        (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_pickle_in_the_place_of_any_file_is_refused_unread(shard_folder, tmp_path, run_of_5, poison, name, signed):
    run = tmp_path / "run"
    folder = shutil.copytree(run_of_5 / checkpoint_name(5), run / checkpoint_name(5))
    put(folder, name, poison, signed)
    with pytest.raises(UserError, match=r"\.(json|safetensors)"):
        checkpoint.load(folder)
    with pytest.raises(UserError):
        train(shard_folder, run, iters=6)
    if name in (GENERATOR, MANIFEST):
        with pytest.raises(UserError):
            load_generator(folder)


def test_a_pickle_beside_the_files_is_not_looked_at(tmp_path, poison):
    folder = checkpoint.save(tmp_path / "run", snapshot(1), keep=2)
    for name in ("pytorch_model.bin", "random_states_0.pkl", "optimizer.bin", "scaler.pt"):
        put(folder, name, poison)
    assert checkpoint.load(folder).state == {"step": 1}


def test_names_in_a_manifest_are_never_opened(tmp_path, poison):
    folder = checkpoint.save(tmp_path / "run", snapshot(1), keep=2)
    outside = tmp_path / "outside"
    outside.write_bytes(poison)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in ("../../outside", str(outside), "/dev/zero"):
        manifest["files"][name] = {"bytes": len(poison), "sha256": file_sha256(outside)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert checkpoint.load(folder).state == {"step": 1}
    del manifest["files"][NETWORKS]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"checkpoint {folder}"):
        checkpoint.load(folder)


def tensors(header: bytes | dict, body: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(start: int, end: int, *shape: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "an empty file": b"",
    "a header longer than the file": tensors(b"{}", length=2**40),
    "the longest header there is": tensors(b"{}", length=2**64 - 1),
    "a header that is no JSON": tensors(b"hello"),
    "a deep header": tensors(b'{"a":' * 100_000),
    "overlapping tensors": tensors({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, bytes(12)),
    "a hole": tensors({"a": entry(0, 4, 1), "b": entry(8, 12, 1)}, bytes(12)),
    "a tensor beyond the end": tensors({"a": entry(0, 2**40, 2**38)}, bytes(8)),
    "a shape larger than its bytes": tensors({"a": entry(0, 8, 2**40)}, bytes(8)),
    "a shape beyond all numbers": tensors({"a": entry(0, 8, 2**62, 8)}, bytes(8)),
    "a negative offset": tensors({"a": entry(-8, 0, 2)}, bytes(8)),
}


@contextlib.contextmanager
def memory(extra: int):
    """Room for so many bytes beyond what this process has; more raises MemoryError or its like."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", [GENERATOR, NETWORKS, OPTIMIZERS])
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_tensor_file_with_a_good_hash_is_refused_in_little_memory(tmp_path, name, what):
    folder = checkpoint.save(tmp_path, snapshot(1), keep=2)
    put(folder, name, MALFORMED[what])
    with memory(2**28), pytest.raises(UserError, match=name):
        checkpoint.load(folder)
    if name == GENERATOR:
        with memory(2**28), pytest.raises(UserError, match="is no generator of this toolkit"):
            load_generator(folder)


@pytest.mark.parametrize("about", [
    b"", b"\x80\x04K\x01.", b"[]", b"5", b"{}", b"[" * 100_000, b'{"config": [], "encoder": {}, "step": 1}',
    b'{"config": {"resolution": 1e9}, "encoder": {"probe_captions": []}, "step": 1}',
], ids=range(8))  # fmt: skip
def test_metadata_that_is_not_ours_is_refused(tmp_path, about):
    header = {"__metadata__": {"toolkit": about.decode("latin-1")}, "a": entry(0, 4, 1)}
    (tmp_path / GENERATOR).write_bytes(tensors(header, bytes(4)))
    with pytest.raises(UserError, match="is no generator of this toolkit"):
        load_generator(tmp_path / GENERATOR)
    (tmp_path / GENERATOR).write_bytes(tensors({"a": entry(0, 4, 1)}, bytes(4)))
    with pytest.raises(UserError, match="is no generator of this toolkit"):
        load_generator(tmp_path / GENERATOR)


def test_a_config_that_promises_more_than_the_file_holds_costs_no_memory(tmp_path):
    """Its first convolution alone would take 9 GiB."""
    found = snapshot(1)
    large = ModelConfig(resolution=256, base_ch=1024)
    folder = checkpoint.save(tmp_path, found._replace(generator=found.generator._replace(config=large)), keep=2)
    with memory(2**29), pytest.raises(UserError, match="the weights do not fit their config"):
        load_generator(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b'{"version": 2}', b'{"version": 2, "files": []}', DEEP])
def test_a_manifest_that_is_none_makes_a_checkpoint_invalid(tmp_path, content):
    older, newer = (checkpoint.save(tmp_path, snapshot(step), keep=2) for step in (1, 2))
    put(newer, MANIFEST, content)
    found, passed_over = checkpoint.newest_valid(tmp_path)
    assert found == older and f"passing over {newer}: " in passed_over[0] and "\n" not in passed_over[0]


STATES = [
    b"", b"[]", b"5", b"{}", DEEP, b"\xff", {"step": "5"}, {"step": -1}, {"position": None}, {"adaptive": []},
    {"adaptive": {}}, {"rollbacks": "x"}, {"config": 3}, {"ema_updates": {}}, {"data_fingerprint": None},
]  # fmt: skip


@pytest.mark.parametrize("change", STATES, ids=range(len(STATES)))
def test_a_state_that_is_none_of_ours_is_refused(shard_folder, tmp_path, run_of_5, change):
    folder = shutil.copytree(run_of_5 / checkpoint_name(5), tmp_path / checkpoint_name(5))
    if isinstance(change, dict):
        change = json.dumps(json.loads((folder / STATE).read_text()) | change).encode()
    put(folder, STATE, change)
    with pytest.raises(UserError) as refused:
        train(shard_folder, tmp_path, iters=6)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


MOMENTS = {"G.0.step": entry(0, 4), "G.0.exp_avg": entry(4, 8, 1), "G.0.exp_avg_sq": entry(8, 12, 1)}


@pytest.mark.parametrize("name,header", [
    (NETWORKS, {"G.text.0.bias": entry(0, 12, 3)}), (NETWORKS, {"x": entry(0, 12, 3)}), (OPTIMIZERS, MOMENTS),
    (OPTIMIZERS, {"G.0.exp_avg": entry(0, 12, 3)}), (OPTIMIZERS, {"G.999.step": entry(0, 12, 3)}),
], ids=range(5))  # fmt: skip
def test_tensors_of_another_network_are_refused(shard_folder, tmp_path, run_of_5, name, header):
    folder = shutil.copytree(run_of_5 / checkpoint_name(5), tmp_path / checkpoint_name(5))
    put(folder, name, tensors(header, bytes(12)))
    with pytest.raises(UserError, match="checkpoint"):
        train(shard_folder, tmp_path, iters=6)

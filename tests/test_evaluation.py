"""Sources, Inception features, FID and Inception Score: plumbing, refusals, and parity with torch-fidelity."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.fid import FidOptions, fid
from evaluation.inception import features, load_extractor
from evaluation.inception_score import InceptionScoreOptions, inception_score, score
from evaluation.sources import open_source
from toolkit.config import ModelConfig
from toolkit.data.decoding import fit_square
from toolkit.data.shard_format import Manifest
from toolkit.data.tar_index import ShardFile, index_tar
from toolkit.devices import pick_device
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.networks.models import Generator
from toolkit.run_folder.checkpoint import GeneratorFile, Snapshot, save

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (24, 24), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        (folder / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"class{i % 3}" / f"{i:04d}.png")
    return folder


def write_shards(folder: Path, count: int, identity: EncoderIdentity | None = None) -> Path:
    """One tar, by hand: picture i has the red level i and the caption 'dish i'."""
    folder.mkdir()
    encoder = HashingEncoder()
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for i in range(count):
            png, npy = io.BytesIO(), io.BytesIO()
            Image.new("RGB", (16, 16), (i, 0, 0)).save(png, format="PNG")
            np.save(npy, encoder.encode([f"dish {i}"]).numpy().astype(np.float16))
            for suffix, data in (("png", png.getvalue()), ("txt", b"dish %d" % i), ("npy", npy.getvalue())):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    tar_path = folder / "shard-00000.tar"
    np.save(folder / "index.npy", index_tar(tar_path, 0))
    shard = ShardFile(tar_path.name, count, tar_path.stat().st_size, file_sha256(tar_path))
    identity = identity or EncoderIdentity.of(encoder)
    Manifest(count, count, 16, identity, (shard,), file_sha256(folder / "index.npy"), {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """An untrained generator of 16 px, saved as training saves it."""
    torch.manual_seed(0)
    config = ModelConfig(resolution=16, base_ch=4, z_dim=8, d_scales=1)
    tensors = {name: tensor.contiguous() for name, tensor in Generator(config).state_dict().items()}
    run = tmp_path_factory.mktemp("run")
    file = GeneratorFile(tensors, config, EncoderIdentity.of(HashingEncoder()), 1)
    save(run, Snapshot(file, {}, {}, {}), keep=0)
    return run


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    """A complete Inception file of random weights: says nothing about pictures, everything about plumbing."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=empty)
    for module in network.modules():  # so that pictures differ in every layer and every batch norm does something
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.8, 1.2)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_(0, 0.1)
    torch.nn.init.normal_(network.fc.weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def partial_weights(real_data, tmp_path) -> Path:
    """The real Inception up to layer 768, zeros behind it."""
    path = tmp_path / "to768.pth"
    subprocess.run([sys.executable, real_data / "weights" / "make_inception_pth.py", path], check=True)
    return path


def pictures_of(source, batch: int = 5) -> torch.Tensor:
    return torch.cat(list(source.batches(batch)))


# --- sources


def test_a_folder_is_read_whole_or_in_a_draw_by_seed(tmp_path):
    folder = write_pictures(tmp_path / "x", 11)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"no picture")
    everything = pictures_of(open_source(folder))
    assert everything.shape == (11, 3, 24, 24) and everything.dtype == torch.uint8
    drawn = [open_source(folder, count=n, seed=seed) for n, seed in ((None, 0), (4, 0), (7, 0), (4, 1))]
    of_all, few, more, other = (set(pictures_of(source).float().mean((1, 2, 3)).tolist()) for source in drawn)
    assert few < more < of_all and len(few) == 4 and few != other
    assert torch.equal(pictures_of(open_source(folder, count=4), batch=3), pictures_of(open_source(folder, count=4)))
    assert len(set(everything.flatten(1).float().mean(1).tolist())) == 11


def test_mixed_sizes_need_a_size(tmp_path):
    folder = write_pictures(tmp_path / "x", 3)
    Image.new("RGB", (40, 20)).save(folder / "wide.png")
    with pytest.raises(UserError, match="choose one size for all with --size"):
        pictures_of(open_source(folder))
    assert pictures_of(open_source(folder, size=16)).shape == (4, 3, 16, 16)


def test_shards_give_pictures_with_their_own_captions(tmp_path):
    source = open_source(write_shards(tmp_path / "s", 9), count=5)
    reds = pictures_of(source, batch=2)[:, 0, 0, 0].tolist()
    assert source.captions == [f"dish {red}" for red in reds] and len(set(reds)) == 5


def test_a_picture_folder_reads_captions_beside_the_pictures(tmp_path):
    for stem, red in (("a", 10), ("b", 20)):
        Image.new("RGB", (8, 8), (red, 0, 0)).save(tmp_path / f"{stem}.png")
    assert open_source(tmp_path).captions is None
    (tmp_path / "a.txt").write_text("\ufeffdish 10\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.txt: no such file; 1 of 2"):
        _ = open_source(tmp_path).captions
    (tmp_path / "b.txt").write_text("dish 20", encoding="utf-8")
    source = open_source(tmp_path)
    assert source.captions == [f"dish {red}" for red in pictures_of(source)[:, 0, 0, 0].tolist()]


def test_picture_i_of_a_checkpoint_depends_on_seed_and_i_only(tmp_path, run_folder):
    shards = write_shards(tmp_path / "s", 4)
    long = open_source(run_folder, count=10, prompts=shards)
    short = open_source(run_folder / "ckpt_0000001", count=3, prompts=shards)
    alone = pictures_of(short, batch=1)
    assert torch.equal(pictures_of(long, batch=1)[:3], alone)
    difference = (pictures_of(long, batch=4)[:3].int() - alone.int()).abs()  # sums are rounded by the batch's size
    assert difference.max() <= 1 and difference.count_nonzero() < 0.01 * difference.numel()
    assert long.captions[:4] == long.captions[4:8] and sorted(set(long.captions)) == [f"dish {i}" for i in range(4)]
    other = open_source(run_folder, count=10, prompts=shards, seed=1)
    ours, theirs = (set(map(bytes, pictures_of(s).flatten(1).numpy())) for s in (long, other))
    assert len(ours) == 10 and not ours & theirs
    assert pictures_of(open_source(run_folder, count=2, prompts=shards, size=8)).shape == (2, 3, 8, 8)


def test_prompts_from_a_text_file_are_those_of_the_shards(tmp_path, run_folder):
    text = tmp_path / "prompts.txt"
    text.write_text("dish 0\n\ndish 1\r\ndish 2\ndish 3\n", encoding="utf-8")
    from_text = open_source(run_folder, prompts=text)
    from_shards = open_source(run_folder, prompts=write_shards(tmp_path / "s", 4))
    assert from_text.captions == from_shards.captions
    difference = pictures_of(from_text).int() - pictures_of(from_shards).int()
    assert difference.abs().max() <= 1  # shards hold float16 vectors


def test_prompts_of_another_encoder_are_refused(tmp_path, run_folder):
    other = EncoderIdentity.from_vectors("ViT-L-14/openai", ["a"], torch.ones(1, 768) / 768**0.5)
    with pytest.raises(UserError, match="another encoder"):
        open_source(run_folder, prompts=write_shards(tmp_path / "s", 2, other))
    with pytest.raises(UserError, match="--prompts"):
        open_source(run_folder)


@pytest.mark.parametrize(("name", "reason"), [("nothing", "no such file"), ("empty", "no pictures")])
def test_sources_that_are_none(tmp_path, name, reason):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=reason):
        open_source(tmp_path / name)


# --- weights


def test_a_hostile_weights_file_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    torch.save({"fc.weight": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="refused"):
        load_extractor("2048", tmp_path / "bad.pth", CPU)
    assert not canary.exists()


def test_files_that_are_no_inception(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    for name, reason in (("text.pth", "refused"), ("other.pth", "no torch-fidelity"), ("none.pth", "cannot be read")):
        with pytest.raises(UserError, match=reason) as caught:
            load_extractor("64", tmp_path / name, CPU)
        assert "\n" not in str(caught.value)


def test_without_network_the_weights_option_is_named(tmp_path, monkeypatch):
    def unreachable(url, path):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"https://\S+inception\S+\.pth.*--weights") as caught:
        load_extractor("2048", None, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", ["2048", "logits_unbiased"])
def test_layers_behind_the_end_of_partial_weights_are_refused(random_weights, tmp_path, layer):
    state = torch.load(random_weights, weights_only=True)
    for name in state:
        if name.startswith("Mixed_7b"):
            state[name] = torch.zeros_like(state[name])
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(UserError, match=f"end before layer {layer}"):
        load_extractor(layer, tmp_path / "partial.pth", CPU)
    load_extractor("768", tmp_path / "partial.pth", CPU)


# --- FID and Inception Score on random weights


def test_fid_reports_its_protocol_and_bias(tmp_path, random_weights, run_folder):
    shards = write_shards(tmp_path / "s", 70)
    options = FidOptions(real=shards, fake=run_folder, weights=random_weights, feature_layer=64, device="cpu")
    report = fid(options)
    assert report["fid_64"] > 0 and "fid" not in report
    protocol = report["protocol"]
    assert (protocol["n_real"], protocol["n_fake"], protocol["resolution"]) == (70, 70, "16x16")
    assert protocol["prompts"] == str(shards) and protocol["checkpoint"].endswith("ckpt_0000001")
    assert protocol["weights_sha256"] == file_sha256(random_weights)
    assert any(note.startswith("biased: N < 10,000") for note in report["notes"])


def test_fid_of_a_folder_with_itself(tmp_path, random_weights):
    folder = write_pictures(tmp_path / "x", 66)
    report = fid(FidOptions(real=folder, fake=folder, weights=random_weights, feature_layer=64, batch=8, device="cpu"))
    assert report["fid_64"] < 1e-6 and "both sides are the same source" in report["notes"]


def test_few_pictures_are_refused_unless_allowed(tmp_path, random_weights):
    x, y = write_pictures(tmp_path / "x", 64), write_pictures(tmp_path / "y", 10, seed=1)
    few = {"real": x, "fake": y, "weights": random_weights, "feature_layer": 64, "device": "cpu"}
    with pytest.raises(UserError, match="has 10 pictures; FID needs 64"):
        fid(FidOptions(**few))
    report = fid(FidOptions(**few, allow_few=True))
    assert np.isfinite(report["fid_64"]) and any("unequal N" in note for note in report["notes"])
    with pytest.raises(UserError, match="has 1 pictures"):
        fid(FidOptions(**few, count=1, allow_few=True))


def test_a_constant_generator_is_noticed(tmp_path, random_weights):
    real, fake = write_pictures(tmp_path / "x", 64), tmp_path / "y"
    fake.mkdir()
    for i in range(64):
        Image.new("RGB", (24, 24), (90, 90, 90)).save(fake / f"{i}.png")
    report = fid(FidOptions(real=real, fake=fake, weights=random_weights, feature_layer=64, device="cpu"))
    assert np.isfinite(report["fid_64"]) and any("collapsed" in note for note in report["notes"])


def test_late_layers_and_inception_score_equal_torch_fidelity(tmp_path, random_weights):
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = write_pictures(tmp_path / "x", 12)
    few = open_source(folder, count=4)
    reference = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=random_weights)
    found = features(few, load_extractor("2048", random_weights, CPU), batch=3)
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), reference(pictures_of(few))[0], rtol=1e-4, atol=1e-5)
    theirs = calculate_metrics(
        input1=str(folder), isc=True, isc_splits=3, feature_extractor_weights_path=str(random_weights), cuda=False,
        cache=False, verbose=False, samples_find_deep=True, save_cpu_ram=True,
    )  # fmt: skip
    ours = score(InceptionScoreOptions(fake=folder, splits=3, weights=random_weights, device="cpu"))
    assert ours["inception_score"] > 1.02  # at 1 any logits would do
    for key in ("mean", "std"):
        suffix = "" if key == "mean" else "_std"
        assert ours[f"inception_score{suffix}"] == pytest.approx(theirs[f"inception_score_{key}"], rel=1e-5)


def test_inception_score_closed_forms():
    assert inception_score(torch.zeros(50, 7)) == pytest.approx((1.0, 0.0), abs=1e-12)
    confident = torch.eye(5).repeat(20, 1) * 1000
    assert inception_score(confident, splits=1) == pytest.approx((5.0, 0.0), rel=1e-12)
    absent = torch.nn.functional.pad(confident, (0, 3))  # classes that no picture has
    assert inception_score(absent, splits=1) == pytest.approx((5.0, 0.0), rel=1e-12)


@pytest.mark.parametrize(("count", "splits"), [(100, 10), (103, 10), (10, 10), (57, 1)])
def test_inception_score_equals_torch_fidelity(count, splits):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(count, 1008, generator=torch.Generator().manual_seed(count))
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)
    assert inception_score(logits, splits) == tuple(theirs.values())


def test_fewer_pictures_than_splits_are_refused(tmp_path):
    with pytest.raises(UserError, match="fewer than 10 splits"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(UserError, match="fewer than 10 splits"):  # before any weights are looked for
        score(InceptionScoreOptions(fake=write_pictures(tmp_path / "x", 9), device="cpu"))


# --- commands


@pytest.mark.parametrize("command", ["fid", "inception_score", "clip_score"])
def test_commands_run_by_path_from_anywhere(tmp_path, command):
    script = REPOSITORY / "evaluation" / f"{command}.py"
    found = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and "--fake" in found.stdout


def test_fid_prints_json_alone_and_errors_in_one_line(tmp_path, random_weights):
    folder = write_pictures(tmp_path / "x", 64)
    arguments = ["--real", folder, "--fake", folder, "--feature_layer", "64", "--device", "cpu"]
    command = [sys.executable, "-m", "evaluation.fid", *arguments]
    found = subprocess.run([*command, "--weights", random_weights], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(found.stdout)["fid_64"] < 1e-6, found.stderr
    found = subprocess.run([*command, "--weights", "none.pth"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr == "fid: Inception weights none.pth cannot be read (No such file or directory)\n"


def test_devices():
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="cannot be used"):
        pick_device("abacus")


# --- real photos, real Inception


def test_golden_features_of_real_photos(real_data, partial_weights, tmp_path):
    """8 photos, centre crop, features computed by torch-fidelity in another environment: equal to 2e-5 of the layer's
    largest feature (measured 5e-7; folded batch norms and channels-last kernels add in another order)."""
    golden = np.load(real_data / "weights" / "golden_features_food8.npz")
    for i, name in enumerate(golden["files"]):
        photo = Image.open(real_data / "data" / "food101-10" / str(name)).convert("RGB")
        fit_square(photo, 128).save(tmp_path / f"{i}.png")
    source = open_source(tmp_path)
    for layer in (64, 192, 768):
        expected = golden[f"f{layer}"]
        extractor = load_extractor(str(layer), partial_weights, CPU)
        for batch in (3, 8) if layer == 768 else (8,):
            found = features(source, extractor, batch).numpy()
            assert np.abs(found - expected).max() < 2e-5 * expected.max()


def test_fid_of_real_photos_equals_torch_fidelity(real_data, partial_weights, tmp_path):
    """40 photos a side, about 20 s on 2 idle cores: parity does not depend on N, the time does."""
    from torch_fidelity import calculate_metrics

    sides = {"train": tmp_path / "train", "test": tmp_path / "test"}
    taken = dict.fromkeys(sides, 0)
    for side in sides.values():
        side.mkdir()
    photos = real_data / "data" / "food101-10"
    for line in (photos / "captions.jsonl").read_text(encoding="utf-8").splitlines()[::13]:
        entry = json.loads(line)
        if taken[entry["split"]] < 40:
            taken[entry["split"]] += 1
            photo = Image.open(photos / entry["file"]).convert("RGB")
            fit_square(photo, 64).save(sides[entry["split"]] / f"{taken[entry['split']]:03d}.png")
    assert set(taken.values()) == {40}
    options = FidOptions(
        real=sides["train"],
        fake=sides["test"],
        weights=partial_weights,
        feature_layer=768,
        device="cpu",
        allow_few=True,
    )
    theirs = calculate_metrics(
        input1=str(sides["train"]), input2=str(sides["test"]), fid=True, feature_layer_fid="768", cuda=False,
        feature_extractor_weights_path=str(partial_weights), cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    assert fid(options)["fid_768"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)


def test_real_partial_weights_are_refused_for_fid(real_data, partial_weights):
    with pytest.raises(UserError, match="end before layer 2048"):
        load_extractor("2048", partial_weights, CPU)

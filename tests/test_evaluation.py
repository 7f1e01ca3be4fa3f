"""The commands for FID and Inception Score: what they report, refuse and print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.fid import FidOptions, fid
from evaluation.inception_score import InceptionScoreOptions, score
from evaluation.metrics.inception_score import inception_score
from tests.forking import Forked
from tests.scored import write_images, write_run, write_shards
from toolkit.durable import file_sha256
from toolkit.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


# --- FID and Inception Score on random weights


def test_fid_reports_its_protocol_and_bias(tmp_path, random_weights, run_folder):
    shards = write_shards(tmp_path / "s", 70)
    report = fid(FidOptions(real=shards, fake=run_folder, weights=random_weights, feature_layer=64, device="cpu"))
    assert report["fid_64"] > 0 and "fid" not in report
    protocol = report["protocol"]
    assert (protocol["n_real"], protocol["n_fake"], protocol["resolution"]) == (70, 70, "16x16")
    assert protocol["prompts"] == str(shards) and protocol["checkpoint"].endswith("ckpt_0000001")
    assert protocol["weights_sha256"] == file_sha256(random_weights)
    assert any(note.startswith("biased: N < 10,000") for note in report["notes"])


def test_truncation_stands_in_the_protocol_and_concerns_checkpoints_alone(tmp_path, random_weights, run_folder):
    shards, images = write_shards(tmp_path / "s", 8), write_images(tmp_path / "x", 8)
    options = {"real": shards, "weights": random_weights, "feature_layer": 64, "device": "cpu", "allow_few": True}
    plain, halved = (fid(FidOptions(**options, fake=run_folder, truncation=psi)) for psi in (1.0, 0.5))
    assert "truncation" not in plain["protocol"] and halved["protocol"]["truncation"] == 0.5
    assert any(note.startswith("truncated: noise x 0.5") for note in halved["notes"])
    assert plain["fid_64"] != halved["fid_64"]
    with pytest.raises(UserError, match="scales a checkpoint's noise, and --fake .* is none"):
        fid(FidOptions(**options, fake=images, truncation=0.5))
    with pytest.raises(UserError, match="truncation is 2.1"):
        FidOptions(**options, fake=run_folder, truncation=2.1)


def test_fid_of_a_folder_with_itself(tmp_path, random_weights):
    folder = write_images(tmp_path / "x", 20)
    options = {"weights": random_weights, "feature_layer": 64, "batch": 8, "device": "cpu", "allow_few": True}
    report = fid(FidOptions(real=folder, fake=folder, **options))
    assert report["fid_64"] < 1e-6 and "both sides are the same source" in report["notes"]


def test_few_images_are_refused_unless_allowed(tmp_path, random_weights):
    y = write_images(tmp_path / "y", 10, seed=1)
    few = {"fake": y, "weights": random_weights, "feature_layer": 64, "device": "cpu"}
    with pytest.raises(UserError, match="has 10 images; fid, kid needs 64"):
        fid(FidOptions(real=write_images(tmp_path / "enough", 64), **few))
    few["real"] = write_images(tmp_path / "x", 12)
    report = fid(FidOptions(**few, allow_few=True))
    assert np.isfinite(report["fid_64"]) and any("unequal N" in note for note in report["notes"])
    with pytest.raises(UserError, match="has 1 images"):
        fid(FidOptions(**few, count=1, allow_few=True))


def test_a_constant_generator_is_noticed(tmp_path, random_weights):
    real, fake = write_images(tmp_path / "x", 12), tmp_path / "y"
    fake.mkdir()
    for i in range(12):
        Image.new("RGB", (24, 24), (90, 90, 90)).save(fake / f"{i}.png")
    options = {"weights": random_weights, "feature_layer": 64, "device": "cpu", "allow_few": True}
    report = fid(FidOptions(real=real, fake=fake, **options))
    assert np.isfinite(report["fid_64"]) and any("collapsed" in note for note in report["notes"])


def test_fewer_images_than_splits_are_refused(tmp_path):
    with pytest.raises(UserError, match="fewer than 10 splits"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(UserError, match="has 9 images.*needs 10 .*--splits"):  # before any weights are looked for
        score(InceptionScoreOptions(fake=write_images(tmp_path / "x", 9), device="cpu"))


# --- commands


@pytest.mark.parametrize("command", ["inception_score", "clip_score"])  # fid: below
def test_commands_run_by_path_from_anywhere(tmp_path, command):
    script = REPOSITORY / "evaluation" / f"{command}.py"
    found = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and "--fake" in found.stdout


def test_fid_prints_json_alone_and_errors_in_one_line(tmp_path, random_weights):
    """By path from anywhere, and forked by its name."""
    folder = write_images(tmp_path / "x", 8)
    arguments = ["--real", folder, "--fake", folder, "--feature_layer", "64", "--device", "cpu", "--allow_few"]
    command = [sys.executable, REPOSITORY / "evaluation" / "fid.py", *arguments, "--weights", random_weights]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(found.stdout)["fid_64"] < 1e-6, found.stderr
    command = ["-m", "evaluation.fid", *map(str, arguments), "--weights", "none.pth"]
    forked = Forked(command, tmp_path, dict(os.environ), stdout=True)
    said = forked.communicate()
    assert (forked.returncode, *said) == (
        1, "", "fid: Inception weights none.pth cannot be read (No such file or directory)\n"
    )  # fmt: skip

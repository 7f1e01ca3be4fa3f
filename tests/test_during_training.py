"""Scores while training, by the real engine: equal to those of the command, and without a trace in the training."""

import json
from pathlib import Path

import pytest

from evaluation import during_training
from evaluation.fid import FidOptions, fid
from tests.running import QUIET, train
from tests.scored import write_shards
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.train import main

ALL = "fid,kid,precision_recall,vendi,diversity,memorisation"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", 72)


def config(shards: Path, weights: Path | None, out: Path, **changes) -> ResolvedConfig:
    return ResolvedConfig(data=str(shards), out_dir=str(out), **QUIET | small(weights) | changes)


def small(weights: Path | None) -> dict:
    return {"iters": 4, "g_norm": "batch", "score_weights": weights and str(weights), "score_layer": 64}


def weights_of(run: Path) -> bytes:
    return (run / "ckpt_0000004" / "networks.safetensors").read_bytes()


def test_scores_of_the_command_and_no_trace(shards, random_weights, tmp_path):
    """The same captions, noise and reference; G draws the same images from memory and from its checkpoint."""
    options = small(random_weights) | {"ckpt_every": 4}
    train(shards, tmp_path / "plain", **options)
    train(shards, tmp_path / "scored", **options, eval_every=2, metrics=ALL, score="recall")
    assert weights_of(tmp_path / "plain") == weights_of(tmp_path / "scored")
    reports = [json.loads((tmp_path / f"scored/evaluations/step_000000{step}.json").read_text()) for step in (2, 4)]
    assert reports[0]["scores"].keys() == reports[1]["scores"].keys() and reports[0]["scores"] != reports[1]["scores"]
    for step, report in zip((2, 4), reports, strict=True):
        run = tmp_path / f"scored/ckpt_000000{step}"
        paths = {"real": str(shards), "fake": str(run), "weights": random_weights}
        command = fid(FidOptions(**paths, feature_layer=64, device="cpu"))
        assert report["scores"]["kid_64"] == pytest.approx(command["kid_64"], rel=1e-6, abs=1e-9)
        assert report["scores"]["fid_64"] == pytest.approx(command["fid_64"], rel=1e-6)
    best = json.loads((tmp_path / "scored/best.json").read_text())
    assert best["metric"] == "recall_64" and [step for step, _ in best["history"]] == [2, 4]
    assert (tmp_path / "scored/evaluations" / reports[1]["nearest_image"]).is_file()


@pytest.mark.parametrize("changes, message", [
    ({"score": "fdi"}, "unknown score 'fdi'; did you mean 'fid'"),
    ({"eval_every": 2, "metrics": "fid,kidd"}, "unknown metric 'kidd'; did you mean 'kid'"),
    ({"score": "fid", "score_weights": "none.pth"}, "no Inception weights at none.pth"),
    ({"score": "fid", "eval_count": 63}, "needs at least 64 images, here are 63"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_training(shards, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        main(config(shards, None, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_names_of_scores(shards, tmp_path):
    def name(**changes) -> tuple[str, bool]:
        return during_training.score_name(config(shards, None, tmp_path, **changes))

    assert name(score="fid") == ("fid_64", False) and name(score="recall") == ("recall_64", True)
    assert name(score="clip_score") == ("clip_score", True) and name(score="swd", eval_every=3) == ("swd", False)
    options = during_training.options_of(config(shards, None, tmp_path, score="recall", eval_every=2, metrics="kid"))
    assert options.metrics == "kid,precision_recall"
    assert len(ShardSet(shards)) == 72

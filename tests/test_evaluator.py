"""The engine behind every score: one forward for all metrics, the same numbers however the work is shared out."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluation.__main__ import listed, main
from evaluation.options import EvaluationOptions, MeasureOptions
from evaluation.scoring.collect import OutOfTime, collect
from evaluation.scoring.evaluator import Evaluator, Setting
from evaluation.scoring.scores import METRICS, named, parse_metrics
from evaluation.sources.opening import open_source
from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.scored import write_images, write_run, write_shards
from toolkit.command_line import parse
from toolkit.data.feature_cache import FeatureCache
from toolkit.errors import UserError
from toolkit.launching.processes import Processes

CPU, ALONE = torch.device("cpu"), Processes(None, 60)
GEOMETRY = "fid,kid,precision_recall,vendi,diversity,memorisation"


class Means:
    """An extractor without a network: the means of nine tiles in three colours."""

    def __init__(self, tap: str = "inception_64") -> None:
        self.taps, self.images = (tap,), 0

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.images += len(images)
        means = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 3)
        return {self.taps[0]: means.flatten(1)}

    def protocol(self) -> dict:
        return {}

    def key(self) -> str:
        return "means"


@pytest.fixture
def means(monkeypatch) -> Means:
    found = Means()
    monkeypatch.setattr("evaluation.scoring.evaluator.load_inception", lambda *arguments: found)
    return found


@pytest.fixture
def shards(tmp_path) -> Path:
    return write_shards(tmp_path / "shards", 100)


def scored(real, fake, metrics: str = GEOMETRY, **setting) -> dict:
    evaluator = Evaluator(MeasureOptions(metrics=metrics, feature_layer=64), real, Setting(ALONE, CPU, **setting))
    return evaluator(fake)


def test_all_metrics_share_one_forward(means, shards, tmp_path):
    """And a cached reference costs none."""
    cache = FeatureCache(tmp_path / "cache")
    fake = open_source(write_images(tmp_path / "fake", 70, (16, 16)))
    first = scored(open_source(shards), fake, metrics=GEOMETRY.replace(",diversity", ""), cache=cache)
    assert means.images == 170
    assert scored(open_source(shards), fake, metrics=GEOMETRY.replace(",diversity", ""), cache=cache) == first
    assert means.images == 240
    evaluator = Evaluator(MeasureOptions(metrics="fid", feature_layer=64), open_source(shards), Setting(ALONE, CPU))
    evaluator(fake), evaluator(fake)
    assert means.images == 240 + 100 + 70 + 70


def test_another_image_is_another_reference(means, shards, tmp_path):
    cache, fake = FeatureCache(tmp_path / "cache"), open_source(write_images(tmp_path / "fake", 70, (16, 16)))
    real = write_images(tmp_path / "real", 70, (16, 16), seed=1)
    before = scored(open_source(real), fake, "fid", cache=cache)["scores"]["fid_64"]
    image = next(real.rglob("*.png"))
    image.write_bytes(next(fake for fake in (tmp_path / "fake").rglob("*.png")).read_bytes())
    assert scored(open_source(real), fake, "fid", cache=cache)["scores"]["fid_64"] != before


def test_every_score_named_is_given_and_no_other(means, shards, tmp_path):
    run = write_run(tmp_path / "run")
    found = scored(open_source(shards), open_source(run, 100, prompts=shards))
    expected = {named(score, name, MeasureOptions(feature_layer=64)) for name in parse_metrics(GEOMETRY)
                for score in METRICS[name].gives}  # fmt: skip
    assert found["scores"].keys() == expected
    assert len(found["nearest"]) == 32
    distances = [pair["distance"] for pair in found["nearest"]]
    assert distances == sorted(distances) and found["nearest"][0]["training_caption"].startswith("dish ")


def test_names_tell_layers_and_resizes_apart():
    assert named("fid", "fid", MeasureOptions()) == "fid"
    assert named("kid_low", "kid", MeasureOptions(feature_layer=768, resize="clean")) == "clean_kid_low_768"
    assert named("clip_score", "clip_score", MeasureOptions(feature_layer=64)) == "clip_score"


@pytest.mark.parametrize("metrics, message", [("fdi", "did you mean 'fid'"), (" , ", "no metrics")])
def test_unknown_metrics(metrics, message):
    with pytest.raises(UserError, match=message):
        parse_metrics(metrics)
    assert "dinov2_fd" not in parse_metrics("all") and len(parse_metrics("all")) == len(METRICS) - 1
    assert parse_metrics("kid, fid,kid") == ["kid", "fid"]


def test_what_lacks_is_said_before_anything_is_computed(means, shards, tmp_path):
    fake = open_source(write_images(tmp_path / "fake", 70, (16, 16)))
    for real, metrics, message in (
        (None, "kid,fid", "kid, fid compare with real images: give --real"),
        (fake, "joint_fd", "joint_fd needs captions of the real images"),
        (open_source(shards, 63), "fid", r"--real .* has 63 images; fid needs 64"),
    ):
        with pytest.raises(UserError, match=message):
            scored(real, fake, metrics)
    with pytest.raises(UserError, match="--fake .* has 20 images"):
        scored(open_source(shards), open_source(shards, 20), "fid")
    assert means.images == 0


@pytest.mark.parametrize("count", [2, 10, 64, 99])
def test_few_images_never_give_nan(means, shards, count):
    """Row 57: refused or marked, the numbers finite or None."""
    found = scored(open_source(shards), open_source(shards, count, seed=1), allow_few=True)
    assert (found["scores"]["kid_64"] is None) == (count < 4) == any("no kid: 2 image" in n for n in found["notes"])
    assert all(value is None or abs(value) < 1e9 for value in found["scores"].values())
    assert any(f"biased: N < 10,000 ({count}" in note for note in found["notes"])


def test_time_is_bounded(means, shards):
    source = open_source(shards)
    with pytest.raises(OutOfTime, match=r"time was up after 0 of 100 images"):
        collect(source, [means], 32, ALONE, until=0.0)


def test_a_failure_of_one_batch_is_no_traceback_of_another(means, shards):
    source = open_source(shards)

    def failing(images):
        raise UserError("no memory left")

    means.__class__ = type("Failing", (Means,), {"__call__": lambda self, images: failing(images)})
    with pytest.raises(UserError, match="no memory left"):
        collect(source, [means], 32, ALONE)


def test_several_sources_in_a_row(means, shards, tmp_path, capsys):
    """One report each, in a folder by name; a curve on stderr."""
    run = write_run(tmp_path / "run")
    fakes = [str(run / "ckpt_0000001"), str(shards)]
    arguments = ["--fake", *fakes, "--real", str(shards), "--feature_layer", "64", "--cache", str(tmp_path / "cache"),
                 "--out", str(tmp_path / "run/evaluations"), "--metrics", "fid,memorisation"]  # fmt: skip
    options = parse(EvaluationOptions, listed(arguments))
    assert options.fake == fakes
    main(options)
    printed = capsys.readouterr()
    reports = json.loads(printed.out)["reports"]
    assert [report["protocol"]["fake"] for report in reports] == fakes
    assert reports[1]["scores"]["fid_64"] < 1e-6 < reports[0]["scores"]["fid_64"]
    files = sorted(path.name for path in (tmp_path / "run/evaluations").iterdir())
    assert files == ["shards.json", "shards_nearest.png", "step_0000001.json", "step_0000001_nearest.png"]
    assert json.loads((tmp_path / "run/evaluations/step_0000001.json").read_text()) == reports[0]
    assert f"{fakes[1]}: fid_64 " in printed.err
    with pytest.raises(UserError, match="give a file ending in .json for one source, a folder for several"):
        main(parse(EvaluationOptions, listed([*arguments, "--out", "x.json"])))


def test_no_source_is_an_error():
    for empty in (["--fake"], ["--fake", ""]):
        with pytest.raises(UserError, match="fake is .* one or more paths"):
            parse(EvaluationOptions, listed(empty))


@pytest.mark.dist
def test_scores_depend_neither_on_processes_nor_on_batches(shards, random_weights, tmp_path, capsys):
    """Row 59. With its own cache each computes the reference itself, but the last. Of several sources in a row the
    reference is on the main process alone, and no other asks for it a second time."""
    run = write_run(tmp_path / "run")

    def arguments(batch: int, cache: str, sources: int = 1) -> list[str]:
        named = {"real": shards, "weights": random_weights, "feature_layer": 64, "metrics": GEOMETRY, "count": 20}
        named |= {"batch": batch, "cache": tmp_path / cache, "device": "cpu"}
        flags = [text for name, value in named.items() for text in (f"--{name}", str(value))]
        return ["--fake", *[str(run)] * sources, "--allow_few", *flags]

    def by_one(*how) -> dict:
        main(parse(EvaluationOptions, listed(arguments(*how))))
        return json.loads(capsys.readouterr().out)

    def by_two(*several: list[str]) -> list[dict]:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [str(REPOSITORY / "tests" / "workers" / "evaluating_in_a_row.py"), str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        forked = Forked([*command, *map(json.dumps, several)], tmp_path, environment)
        said = forked.communicate()[1]
        assert forked.returncode == 0, said[-3000:]
        printed, nothing = (json.loads((tmp_path / f"printed_{rank}.json").read_text()) for rank in range(2))
        assert not any(nothing)
        return [json.loads(text) for text in printed]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the two
    one, odd = by_one(8, "a"), by_one(3, "c")
    torch.set_num_threads(threads)
    several, cached = by_two(arguments(8, "b", 2), arguments(3, "b"))
    first, second = several["reports"]
    assert one["scores"] == first["scores"]  # the same batches, whoever computes them
    assert first == second
    for other in (odd, cached):
        for name, value in one["scores"].items():
            assert other["scores"][name] == (value and pytest.approx(value, rel=1e-6, abs=1e-9)), name
    assert one["scores"]["fid_64"] > 1e-3

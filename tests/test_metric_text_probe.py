"""The text probe against normal equations, images left out by hand, chance, and its own controls."""

import json

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evaluation import during_training
from evaluation.metrics import ridge, text_probe
from evaluation.metrics.text_agreement import Retrieval, shuffled_order
from evaluation.options import EvaluationOptions, MeasureOptions
from evaluation.run_scores.score_names import CONTROLS, parse
from evaluation.scoring.evaluator import Evaluator, Setting
from evaluation.scoring.pipeline import evaluate
from evaluation.sources.opening import open_source
from tests.running import train
from tests.scored import write_images, write_run, write_shards
from tests.test_during_training import config, shards, small  # noqa: F401
from tests.test_evaluator import ALONE, CPU, Means, means  # noqa: F401
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError


def draw(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def names(count: int) -> list[str]:
    return [f"dish {i}" for i in range(count)]


def texts_of(count: int, width: int = 16, seed: int = 0, common: float = 3.0) -> Tensor:
    """Unit vectors that share a direction, as those of captions of one kind do."""
    return normalize(draw(count, width, seed) + common * draw(1, width, 99))


def shown(texts: Tensor, width: int = 24, noise: float = 0.02, seed: int = 1) -> Tensor:
    """Features that tell the text linearly, away from zero and in units of no meaning."""
    return 7 * (texts @ draw(texts.shape[1], width, 98) + noise * draw(len(texts), width, seed)) + 40


def by_hand(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression by its normal equations: mean, weight, bias."""
    x, y = features.double(), targets.double()
    mean, bias = x.mean(dim=0), y.mean(dim=0)
    x = x - mean
    weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64), x.T @ (y - bias))
    return mean, weight, bias


def penalty_of(features: Tensor, strength: float) -> float:
    x = features.double()
    return strength * float((x - x.mean(dim=0)).square().sum()) / x.shape[1]


@pytest.mark.parametrize("count, width", [(60, 9), (20, 50)])  # more features than images as well
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_regression_is_that_of_the_normal_equations(monkeypatch, count, width, strength):
    monkeypatch.setattr(ridge, "STRENGTHS", (strength,))
    features, targets = draw(count, width, 0) + 3, draw(count, 4, 1)
    found = ridge.fit(features, targets)
    mean, weight, bias = by_hand(features, targets, penalty_of(features, strength))
    fresh = draw(7, width, 2)
    assert torch.allclose(found.deviations(fresh), (fresh.double() - mean) @ weight, rtol=1e-8, atol=1e-10)
    assert torch.allclose(found.bias, bias)
    assert torch.allclose(found.residuals, targets - bias - (features.double() - mean) @ weight, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("count, width", [(30, 6), (12, 20)])
def test_residuals_left_out_are_those_of_teaching_without_the_images(monkeypatch, count, width):
    """One image, and pairs; the penalty stays that of the whole set."""
    monkeypatch.setattr(ridge, "STRENGTHS", (0.1,))
    features, targets = draw(count, width, 0), draw(count, 3, 1)
    found, penalty = ridge.fit(features, targets), penalty_of(features, 0.1)

    def without(*rows: int) -> Tensor:
        rest = [i for i in range(count) if i not in rows]
        mean, weight, bias = by_hand(features[rest], targets[rest], penalty)
        return targets[rows[0]].double() - bias - (features[rows[0]].double() - mean) @ weight

    assert torch.allclose(found.left_out(), torch.stack([without(i) for i in range(count)]), rtol=1e-8, atol=1e-10)
    rows, others = torch.tensor([3, 8]), torch.tensor([[1, 5, 7], [2, 9, 0]])
    expected = torch.stack(
        [torch.stack([without(i, j) for j in row]) for i, row in zip((3, 8), others.tolist(), strict=True)]
    )
    assert torch.allclose(found.left_out_with(rows, others), expected, rtol=1e-8, atol=1e-10)


def test_the_strength_is_the_one_of_the_least_leave_one_out_error():
    features, targets = draw(40, 30, 0), draw(40, 30, 0)[:, :5] + 2 * draw(40, 5, 1)
    errors = {}
    for strength in ridge.STRENGTHS:
        errors[strength] = 0.0
        for i in range(40):
            rest = [k for k in range(40) if k != i]
            mean, weight, bias = by_hand(features[rest], targets[rest], penalty_of(features, strength))
            errors[strength] += float((targets[i] - bias - (features[i] - mean) @ weight).square().sum())
    assert ridge.fit(features, targets).strength == min(errors, key=errors.get)
    assert min(ridge.STRENGTHS) < ridge.fit(features, targets).strength < max(ridge.STRENGTHS)


def test_fresh_images_that_show_their_text_are_found_and_shuffled_captions_by_chance():
    taught, fresh = texts_of(400), texts_of(600, seed=5)
    reader = text_probe.fit(shown(taught), taught)
    found = text_probe.judge(reader, shown(fresh, seed=6), fresh, names(600))
    assert found.top(10) > 0.99 and found.distractors == 99
    assert text_probe.judge_left_out(reader, taught, names(400)).top(10) > 0.99
    order = shuffled_order(names(600))
    control = text_probe.judge(reader, shown(fresh, seed=6), fresh[order], [names(600)[i] for i in order])
    assert control.top(10) == pytest.approx(0.1, abs=0.05)  # four standard deviations
    assert found.top(1) == found.r_precision > 0.5


@pytest.mark.parametrize("width", [16, 256])
def test_images_that_show_nothing_are_at_chance_fresh_or_left_out(width):
    """With 256 directions for 300 texts each is nearly alone in its own: left out alone, it would be nearly last."""
    taught, tops, left_out = texts_of(300, width), [], []
    for seed in range(4):
        reader = text_probe.fit(draw(300, 40, 10 + seed), taught)
        tops.append(text_probe.judge(reader, draw(300, 40, 20 + seed), taught, names(300), seed=seed).top(10))
        left_out.append(text_probe.judge_left_out(reader, taught, names(300), seed=seed).top(10))
    assert sum(tops) / 4 == pytest.approx(0.1, abs=0.035)  # four standard deviations
    assert sum(left_out) / 4 == pytest.approx(0.1, abs=0.035)


def test_ranks_by_hand(monkeypatch):
    """Of fewer than 100 captions each image chooses from all, by the cosine from the mean of the real vectors."""
    monkeypatch.setattr(ridge, "STRENGTHS", (0.3,))
    taught, fresh = texts_of(40, 5), texts_of(30, 5, seed=5)
    features, drawn = shown(taught, 8, noise=0.6), shown(fresh, 8, noise=0.6, seed=6)
    mean, weight, bias = by_hand(features, taught, penalty_of(features, 0.3))
    said = normalize((drawn.double() - mean) @ weight)
    cosines = said @ normalize(fresh.double() - bias).T
    found = text_probe.judge(text_probe.fit(features, taught), drawn, fresh, names(30))
    assert found.ranks.tolist() == (1.0 + (cosines > cosines.diagonal()[:, None]).sum(dim=1)).tolist()
    assert found.ranks.unique().numel() > 3


def test_left_out_ranks_by_hand(monkeypatch):
    """Each comparison by a reader taught without both images, seen from the mean of the vectors it was taught."""
    monkeypatch.setattr(ridge, "STRENGTHS", (0.3,))
    count, texts = 14, texts_of(14, 5)
    features, captions = shown(texts, 8, noise=0.6), [*names(12), "dish 0", "dish 4"]
    texts[12], texts[13] = texts[0], texts[4]
    penalty = penalty_of(features, 0.3)
    ranks = []
    for i, caption in enumerate(captions):
        ranks.append(1.0)
        for j in range(12):
            if captions[j] != caption:
                rest = [k for k in range(count) if k not in (i, j)]
                mean, weight, bias = by_hand(features[rest], texts[rest], penalty)
                said = (features[i].double() - mean) @ weight
                own, other = (torch.cosine_similarity(said, texts[k].double() - bias, dim=0) for k in (i, j))
                ranks[-1] += float(other > own)
    found = text_probe.judge_left_out(text_probe.fit(features, texts), texts, captions)
    assert found.ranks.tolist() == ranks and found.distractors == 11
    assert len(set(ranks)) > 3


def test_a_turn_of_the_feature_space_and_another_unit_change_nothing():
    taught, fresh = texts_of(120), texts_of(150, seed=5)
    features, drawn = shown(taught, noise=1.0), shown(fresh, noise=1.0, seed=6)
    turn = torch.linalg.qr(draw(24, 24, 7)).Q
    found = []
    for change in (lambda x: x, lambda x: 0.01 * (x @ turn) - 3):
        reader = text_probe.fit(change(features), taught)
        found.append(text_probe.judge(reader, change(drawn), fresh, names(150)))
        found.append(text_probe.judge_left_out(reader, taught, names(120)))
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one.median_rank == other.median_rank and one.top(10) == pytest.approx(other.top(10), abs=0.01)
        assert 0.12 < one.top(10) < 0.98


def test_what_all_captions_share_does_not_decide():
    """A common direction ten times as strong as what tells the texts apart leaves the answers as they were."""
    found = []
    for common in (0.0, 10.0):
        taught = draw(300, 16, 0) + common * draw(1, 16, 99)
        reader = text_probe.fit(shown(draw(300, 16, 0), noise=1.0), taught)
        fresh, drawn = draw(300, 16, 5), shown(draw(300, 16, 5), noise=1.0, seed=6)
        found.append(text_probe.judge(reader, drawn, fresh + common * draw(1, 16, 99), names(300)).top(10))
    assert found[0] == pytest.approx(found[1], abs=0.01) and found[0] > 0.5


def test_more_features_than_images_and_constant_ones():
    taught, fresh = texts_of(150, 8), texts_of(200, 8, seed=5)
    constant = torch.full((200, 30), 4.2)
    features, drawn = (torch.cat([x, constant[: len(x)]], dim=1)
                       for x in (shown(taught, 300), shown(fresh, 300, seed=6)))  # fmt: skip
    reader = text_probe.fit(features, taught)
    assert text_probe.judge(reader, drawn, fresh, names(200)).top(10) > 0.99
    alike = text_probe.judge(reader, drawn[:1].expand(200, -1), fresh, names(200))
    assert alike.top(10) == pytest.approx(0.1, abs=0.09) and alike.ranks.unique().numel() > 50
    mean = reader.mean.expand(200, -1)  # an image that says nothing ties with all
    assert text_probe.judge(reader, mean, fresh, names(200)).top(10) == pytest.approx(0.1)


def test_top_places_share_ties():
    found = Retrieval(0.0, 0.0, torch.tensor([1.0, 3.5, 10.0, 11.0, 50.5]).double(), 99, torch.tensor([0, 1, 0, 0, 99]))
    assert found.top(10) == pytest.approx((1 + 1 + 1 + 0 + 0.1) / 5)
    assert found.top(3) == pytest.approx((1 + 0.5 + 0 + 0 + 0.03) / 5)
    assert found.top(100) == 1


def test_what_cannot_be_taught_is_one_line():
    texts = texts_of(30)
    for features, vectors, message in (
        (torch.ones(30, 4), texts, "the features of the 30 real images are all equal"),
        (draw(30, 4, 0), texts[:1].expand(30, -1), "the text vectors of the 30 real images are all equal"),
        (draw(30, 4, 0), texts[:29], "30 images have 29 text vectors"),
        (draw(2, 4, 0), texts[:2], "the text probe needs at least 3"),
        (torch.full((30, 4), torch.nan), texts, "NaN"),
    ):
        with pytest.raises(UserError, match=message) as error:
            text_probe.fit(features, vectors)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="width 4 and 5"):
        text_probe.judge(text_probe.fit(draw(30, 5, 0), texts), draw(30, 4, 0), texts, names(30))
    assert text_probe.judge(text_probe.fit(draw(30, 5, 0), texts), draw(9, 5, 0), texts[:9], ["soup"] * 9) is None


# --- in the engine


NAMES = ("text_top10", "text_top1", "text_median_rank", "text_top10_shuffled", "text_top10_real")


def scored(real, fake, metrics: str = "text_probe", **setting) -> dict:
    evaluator = Evaluator(MeasureOptions(metrics=metrics, feature_layer=64), real, Setting(ALONE, CPU, **setting))
    return evaluator(fake)


def test_the_engine_reads_vectors_from_shards_and_checkpoints(means, tmp_path):  # noqa: F811
    """The real images against themselves are read by a reader that has seen them, the left out ones are not."""
    real = open_source(write_shards(tmp_path / "shards", 120))
    same = scored(real, real)
    assert list(same["scores"]) == [f"{name}_64" for name in NAMES]
    features = torch.cat([Means()(batch)["inception_64"] for batch in real.batches(32)])
    vectors = real.read_vectors().values
    assert vectors.shape == (120, 768) and torch.allclose(vectors.norm(dim=1), torch.ones(120), atol=1e-5)
    expected = HashingEncoder().encode(real.captions)
    assert torch.allclose(vectors, expected, atol=1e-3)
    reader = text_probe.fit(features, vectors)
    found = text_probe.judge(reader, features, vectors, real.captions)
    left_out = text_probe.judge_left_out(reader, vectors, real.captions)
    assert same["scores"]["text_top10_64"] == pytest.approx(found.top(10))
    assert same["scores"]["text_top1_64"] == pytest.approx(found.top(1))
    assert same["scores"]["text_median_rank_64"] == found.median_rank
    assert same["scores"]["text_top10_real_64"] == pytest.approx(left_out.top(10))
    assert same["protocol"]["metrics"]["text_probe"] == {
        "candidates": 100, "ridge_strength": reader.strength, "encoder": "hashing"}  # fmt: skip
    assert same["prompts"][0].keys() == {"caption", "count", "text_rank"} and len(same["prompts"]) == 120
    drawn = open_source(write_run(tmp_path / "run"), 130, prompts=tmp_path / "shards")
    vectors = drawn.read_vectors()
    assert torch.allclose(vectors.values, HashingEncoder().encode(drawn.captions), atol=1e-3)
    assert vectors.encoder.name == "hashing"
    other = scored(real, drawn)["scores"]
    assert other["text_top10_real_64"] == same["scores"]["text_top10_real_64"]
    assert 0 <= other["text_top10_64"] < same["scores"]["text_top10_64"]


def test_few_captions_are_told_of(means, tmp_path):  # noqa: F811
    few, fewer = (open_source(write_shards(tmp_path / f"{count}", count)) for count in (40, 8))
    found = scored(few, few, allow_few=True)
    assert found["protocol"]["metrics"]["text_probe"]["candidates"] == 40
    assert "text_probe: 40 different captions to choose from instead of 100, chance 25%" in found["notes"]
    assert found["scores"]["text_top10_real_64"] is not None
    found = scored(few, fewer, allow_few=True)
    assert found["scores"]["text_top10_64"] is None and found["scores"]["text_median_rank_64"] is not None
    assert any("8 different captions" in note and "100 % for anything" in note for note in found["notes"])
    found = scored(fewer, few, allow_few=True)["scores"]  # the ceiling would be of easier questions
    assert found["text_top10_64"] is not None and found["text_top10_real_64"] is None


def test_what_lacks_vectors_is_one_line(means, tmp_path):  # noqa: F811
    """Before anything is computed; and no other metric loses its score by it."""
    shard_source = open_source(write_shards(tmp_path / "shards", 70))
    folder = write_images(tmp_path / "folder", 70, (16, 16))
    for image in folder.rglob("*.png"):
        image.with_suffix(".txt").write_text(f"dish {image.stem}")
    plain = open_source(folder)
    for real, fake in ((plain, shard_source), (shard_source, plain)):
        with pytest.raises(UserError, match="--real a shard folder, --fake a checkpoint or shards; .*folder has none"):
            scored(real, fake)
    assert means.images == 0
    found = scored(shard_source, plain, "fid,text_probe")
    assert found["scores"]["text_top10_64"] is None and found["scores"]["fid_64"] > 0
    assert any(note.startswith("no text_probe: ") for note in found["notes"])


def test_vectors_of_another_encoder_are_refused(means, tmp_path):  # noqa: F811
    other = EncoderIdentity.from_vectors("ViT-B-32/laion2b_s34b_b79k", ["soup"], torch.ones(1, 768) / 768**0.5)
    real = open_source(write_shards(tmp_path / "real", 70))
    with pytest.raises(UserError, match="different encoders: hashing .* against ViT-B-32"):
        scored(real, open_source(write_shards(tmp_path / "fake", 70, other)))


def test_training_gives_the_scores_of_the_command(shards, random_weights, tmp_path):  # noqa: F811
    options = small(random_weights) | {"ckpt_every": 4, "eval_every": 4}
    train(shards, tmp_path / "run", **options, metrics="text_probe", score="text_top10")
    (path,) = (tmp_path / "run/evaluations").glob("step_*.json")
    report = json.loads(path.read_text())
    options = EvaluationOptions(real=str(shards), fake=[str(tmp_path / "run/ckpt_0000004")], weights=random_weights,
                                feature_layer=64, device="cpu", metrics="text_probe", cache="")  # fmt: skip
    (command,) = evaluate(options)
    for name in NAMES:
        assert report["scores"][f"{name}_64"] == pytest.approx(command["scores"][f"{name}_64"]), name
        assert report["scores"][f"{name}_64"] is not None
    assert report["protocol"]["metrics"]["text_probe"] == command["protocol"]["metrics"]["text_probe"]
    best = json.loads((tmp_path / "run/best.json").read_text())
    assert best["metric"] == "text_top10_64" and best["value"] == report["scores"]["text_top10_64"]
    assert during_training.score_name(config(shards, None, tmp_path, score="text_median_rank"))[1] is False


def test_controls_stand_beside_it():
    assert set(CONTROLS["text_top10"]) == {"text_top10_shuffled", "text_top10_real"}
    assert parse("text_top10_real_768").is_auxiliary and not parse("text_top10_768").is_auxiliary
    assert parse("text_top1").stem == "text_top1"

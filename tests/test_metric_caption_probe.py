"""The caption probe against leave-one-out done by hand, closed forms and its own controls."""

import pytest
import torch
from torch import Tensor

from evaluation.metrics import ridge
from evaluation.metrics.caption_probe import fit, hits
from toolkit.errors import UserError


def clusters(count: int, classes: int = 4, width: int = 12, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, list]:
    """Images [N, width] around a centre for each caption."""
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    features = centres[labels] + noise * torch.randn(count, width, generator=generator) + 5
    return features, [f"dish {label}" for label in labels.tolist()]


def test_it_reads_fresh_images_of_the_same_kind_and_not_shuffled_ones():
    probe = fit(*clusters(400))
    features, captions = clusters(2000, seed=1)
    found = hits(probe, features, captions).double().mean().item()
    assert found > 0.95
    assert found == pytest.approx(probe.accuracy, abs=0.03)
    shuffled = [captions[i] for i in torch.randperm(2000, generator=torch.Generator().manual_seed(0)).tolist()]
    assert hits(probe, features, shuffled).double().mean().item() == pytest.approx(0.25, abs=0.05)


def test_its_accuracy_is_that_of_leaving_every_image_out(monkeypatch):
    features, captions = clusters(60, noise=3.0)
    for strength in (1e-3, 1.0):
        monkeypatch.setattr(ridge, "STRENGTHS", (strength,))
        right = 0
        centred = features.double() - features.double().mean(dim=0)
        for i in range(60):
            # The penalty is that of the whole set: only what is fitted leaves the image out.
            scale = float(centred.square().sum() / features.shape[1])
            rest = [k for k in range(60) if k != i]
            right += int(
                by_hand(features[rest], [captions[k] for k in rest], strength * scale, features[i]) == captions[i]
            )
        assert fit(features, captions).accuracy == pytest.approx(right / 60)
        assert 0.3 < right / 60 < 1


def by_hand(features: Tensor, captions: list[str], penalty: float, image: Tensor) -> str:
    """Ridge regression by its normal equations."""
    known = sorted(set(captions))
    targets = torch.tensor([[float(caption == other) for other in known] for caption in captions], dtype=torch.float64)
    mean, bias = features.double().mean(dim=0), targets.mean(dim=0)
    x = features.double() - mean
    weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64), x.T @ (targets - bias))
    return known[int(((image.double() - mean) @ weight + bias).argmax())]


def test_noise_chooses_a_strong_ridge_and_reads_by_chance():
    features, _ = clusters(400, noise=0.0)
    features = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    captions = [f"dish {i % 4}" for i in range(400)]
    probe = fit(features, captions)
    assert probe.strength >= 10
    fresh = torch.randn(2000, 12, generator=torch.Generator().manual_seed(3))
    assert hits(probe, fresh, [f"dish {i % 4}" for i in range(2000)]).double().mean().item() == pytest.approx(
        0.25, abs=0.06
    )


def test_more_features_than_images():
    features, captions = clusters(40, width=100)
    assert hits(fit(features, captions), *clusters(200, width=100, seed=5)).double().mean() > 0.9


@pytest.mark.parametrize(
    "captions, word",
    [
        (["a"] * 40, "1 different captions"),
        ([f"{i}" for i in range(400)], "400 different captions"),
        (["a"] * 36 + ["rare"] * 4, "4 real image(s) of 'rare'"),
    ],
)
def test_what_cannot_be_taught_is_one_line(captions, word):
    with pytest.raises(UserError) as error:
        fit(torch.randn(len(captions), 3), captions)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_a_caption_never_taught_is_named():
    with pytest.raises(UserError, match="'pizza'"):
        hits(fit(*clusters(40)), torch.randn(1, 12), ["pizza"])

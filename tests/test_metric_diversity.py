"""Diversity within prompts and over the set, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from evaluation.metrics import diversity
from evaluation.metrics.diversity import mean_diversity, vendi_score, within_prompts
from toolkit.errors import UserError


def draw(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_distances_within_a_prompt_are_those_of_all_pairs():
    features, groups = draw(60, 8, 0), [i % 3 for i in range(60)]
    found = within_prompts(features, groups)
    for group in range(3):
        expected = torch.pdist(features[group::3].double()).mean()
        assert found[group] == pytest.approx(float(expected), rel=1e-12)
    assert mean_diversity(found) == pytest.approx(sum(found.values()) / 3)


def test_collapse_of_one_prompt_is_seen_at_that_prompt():
    features = 100 + draw(30, 8, 1)
    features[:10] = features[0]
    found = within_prompts(features, ["burek"] * 10 + ["soup"] * 10 + [f"alone {i}" for i in range(10)])
    assert found.keys() == {"burek", "soup"} and found["burek"] == 0 and found["soup"] > 1


def test_what_has_no_pairs_has_no_diversity():
    assert within_prompts(draw(3, 2, 2), [0, 1, 2]) == {} and mean_diversity({}) is None


@pytest.mark.parametrize(("count", "width"), [(12, 30), (30, 12)])
def test_vendi_of_equal_images_is_one(count, width):
    assert vendi_score(draw(1, width, 3).expand(count, width)) == pytest.approx(1, rel=1e-9)
    lengths = torch.linspace(0.1, 9, count)[:, None]
    assert vendi_score(lengths * draw(1, width, 3)) == pytest.approx(1, rel=1e-6)  # only directions count


@pytest.mark.parametrize("width", [10, 40])
def test_vendi_counts_orthogonal_images(width):
    assert vendi_score(3 * torch.eye(10, width)) == pytest.approx(10, rel=1e-12)
    assert vendi_score(torch.eye(10, width).repeat(5, 1)) == pytest.approx(10, rel=1e-12)


def test_vendi_of_two_images_at_an_angle():
    cosine = 0.6  # eigenvalues of K / 2: (1 +- cosine) / 2
    values = [(1 + cosine) / 2, (1 - cosine) / 2]
    expected = math.exp(-sum(v * math.log(v) for v in values))
    assert vendi_score(torch.tensor([[1, 0], [cosine, 0.8]], dtype=torch.float64)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [20, 90])
def test_both_matrices_give_the_entropy_of_the_cosines(count, monkeypatch):
    monkeypatch.setattr(diversity, "CHUNK", 17)
    features = draw(count, 40, 4)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(unit @ unit.T / count).clamp(min=0)
    assert vendi_score(features) == pytest.approx(float(torch.special.entr(values).sum().exp()), rel=1e-9)


@pytest.mark.parametrize("width", [3, 30])
def test_zero_vectors_count_as_alike(width):
    assert vendi_score(torch.zeros(10, width)) == pytest.approx(1)
    half = torch.cat([torch.zeros(5, width), torch.ones(5, width)])
    assert vendi_score(half) == pytest.approx(2, rel=1e-9)


def test_refusals():
    with pytest.raises(UserError, match="at least 1"):
        vendi_score(torch.empty(0, 3))
    with pytest.raises(UserError, match="NaN"):
        within_prompts(torch.ones(2, 2) / 0, [0, 0])
    with pytest.raises(UserError, match="3 images have 2 prompts"):
        within_prompts(torch.ones(3, 2), [0, 0])

"""Text agreement: retrieval among distractors, the shuffle that serves as control, and the table by prompt."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from evaluation.metrics.text_agreement import (
    clip_score,
    per_prompt,
    retrieval,
    shuffled_clip_score,
    shuffled_order,
)
from toolkit.errors import UserError


def draw(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def names(count: int) -> list[str]:
    return [f"dish {i}" for i in range(count)]


def test_images_that_are_their_captions_come_first():
    texts = draw(300, 64, 0)
    found = retrieval(3 * texts, texts, names(300))
    assert (found.r_precision, found.median_rank, found.distractors) == (1, 1, 99)
    worst = retrieval(-texts, texts, names(300))
    assert worst.r_precision == 0 and worst.ranks.min() == 100


def test_unrelated_images_are_at_chance():
    found = retrieval(draw(3000, 8, 1), draw(3000, 8, 2), names(3000))
    assert found.r_precision == pytest.approx(0.01, abs=0.0075)  # four standard deviations
    assert found.median_rank == pytest.approx(50.5, abs=4)
    assert found.ranks.min() == 1 and found.ranks.max() == 100


def test_ranks_by_hand():
    texts = torch.eye(4)
    images = torch.tensor([[9.0, 3, 2, 1], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0.5]])
    found = retrieval(images, texts, names(4))
    assert found.ranks.tolist() == [1, 2, 3, 4] and found.distractors == 3
    assert (found.r_precision, found.median_rank) == (0.25, 2.5)


def test_ties_share_places():
    """Text vectors that collapsed into one tell nothing: chance, not success."""
    found = retrieval(draw(500, 8, 3), torch.ones(500, 8), names(500))
    assert found.r_precision == pytest.approx(0.01, rel=1e-12) and found.median_rank == 50.5


def test_equal_captions_are_no_distractors():
    captions = ["soup", "soup", "soup", "burek", "burek"]
    texts = torch.eye(2)[[0, 0, 0, 1, 1]]
    found = retrieval(texts, texts, captions)
    assert (found.r_precision, found.distractors) == (1, 1) and found.ranks.tolist() == [1] * 5
    assert retrieval(texts[:3], texts[:3], captions[:3]) is None


def test_every_caption_serves_as_a_distractor_equally_often():
    """Image i is nearest to caption i of 20 and, next, to number 0: its rank tells whether 0 is among the 5."""
    texts = torch.eye(20)
    images = 0.5 * texts + texts[:1]
    seen = [retrieval(images, texts, names(20), distractors=5, seed=seed).ranks for seed in range(400)]
    share = torch.stack(seen)[:, 1:].sub(1).mean(dim=0)
    assert torch.allclose(share, torch.tensor(5 / 19).double(), atol=0.09)  # four standard deviations


def test_shuffled_captions_are_at_chance_and_matched_ones_above():
    texts = draw(400, 32, 4)
    images, captions = texts + 0.5 * draw(400, 32, 5), names(400)
    order = shuffled_order(captions)
    control = retrieval(images, texts[order], [captions[i] for i in order])
    assert retrieval(images, texts, captions).r_precision > 0.9 and control.r_precision < 0.05
    assert shuffled_clip_score(images, texts, captions) < 0.3 * clip_score(images, texts).clip_score


@pytest.mark.parametrize(
    "counts", [[1] * 9, [1, 1], [3, 2, 1], [4, 4], [5, 2, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2], [7, 7, 3, 1]]
)
def test_no_image_gets_a_caption_equal_to_its_own(counts):
    captions = [f"caption {n}" for n, count in enumerate(counts) for _ in range(count)]
    orders = [shuffled_order(captions, seed) for seed in range(30)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(captions)))
        assert all(captions[i] != captions[j] for i, j in enumerate(order.tolist()))
    assert len(captions) < 5 or len({tuple(order.tolist()) for order in orders}) > 1  # the seed counts


def test_more_than_half_of_one_caption_leaves_as_few_as_can_be():
    captions = ["soup"] * 7 + ["burek", "salad", "cake"]
    for seed in range(20):
        kept = [i for i, j in enumerate(shuffled_order(captions, seed).tolist()) if captions[i] == captions[j]]
        assert len(kept) == 2 * 7 - 10
    assert shuffled_order(["soup"] * 5) is None and shuffled_order(["soup"]) is None
    assert shuffled_clip_score(torch.eye(2), torch.eye(2), ["soup", "soup"]) is None


def test_table_by_prompt():
    captions = ["burek", "soup", "burek", "soup", "burek"]
    cosines = torch.tensor([0.2, -0.5, 0.4, 0.6, 0.3])
    images = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    texts = torch.tensor([[1.0, 0.0]]).expand(5, 2)
    table = per_prompt(images, texts, captions, torch.tensor([1.0, 9, 4, 2, 3]).double())
    assert list(table) == ["burek", "soup"]
    assert table["burek"] == pytest.approx({"count": 3, "clip_score": 30, "rank": 3}, rel=1e-6)
    assert table["soup"] == pytest.approx({"count": 2, "clip_score": 30, "rank": 5.5}, rel=1e-6)
    assert all("rank" not in row for row in per_prompt(images, texts, captions).values())
    whole = sum(row["count"] * row["clip_score"] for row in table.values()) / 5
    assert whole == pytest.approx(clip_score(images, texts).clip_score) and Counter(captions)["burek"] == 3


def test_refusals():
    with pytest.raises(UserError, match="no images"):
        clip_score(torch.empty(0, 4), torch.empty(0, 4))
    with pytest.raises(UserError, match="NaN"):
        clip_score(torch.ones(3, 4), torch.ones(3, 4) / 0)
    with pytest.raises(UserError, match="distractors is 0"):
        retrieval(torch.eye(3), torch.eye(3), names(3), distractors=0)
    with pytest.raises(UserError, match="NaN"):
        retrieval(torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, torch.nan]]), names(3))
    with pytest.raises(UserError, match="3 images, 3 caption vectors and 2 captions"):
        retrieval(torch.eye(3), torch.eye(3), names(2))

"""Inception Score: closed forms, and torch-fidelity's value on the same logits."""

import pytest
import torch

from evaluation.metrics.inception_score import inception_score


def test_inception_score_closed_forms():
    assert inception_score(torch.zeros(50, 7)) == pytest.approx((1.0, 0.0), abs=1e-12)
    confident = torch.eye(5).repeat(20, 1) * 1000
    assert inception_score(confident, splits=1) == pytest.approx((5.0, 0.0), rel=1e-12)
    absent = torch.nn.functional.pad(confident, (0, 3))  # classes that no image has
    assert inception_score(absent, splits=1) == pytest.approx((5.0, 0.0), rel=1e-12)


@pytest.mark.parametrize(("count", "splits"), [(100, 10), (103, 10), (10, 10), (57, 1)])
def test_inception_score_equals_torch_fidelity(count, splits):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(count, 1008, generator=torch.Generator().manual_seed(count))
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)
    assert inception_score(logits, splits) == tuple(theirs.values())

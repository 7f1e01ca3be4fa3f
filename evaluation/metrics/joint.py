"""Fréchet distance of images and their captions together: images of other prompts' things cost as well."""

import torch
from torch import Tensor

from evaluation.metrics.features import check_features
from evaluation.metrics.frechet import frechet_distance, statistics
from toolkit.errors import UserError


def joint_frechet_distance(real: Tensor, real_texts: Tensor, fake: Tensor, fake_texts: Tensor) -> float:
    """Image features [N, C] and [M, C] with caption vectors [N, E] and [M, E] -> distance of [image, alpha * text].

    Fréchet Joint Distance, DeVries et al. 2019 (arXiv:1907.08175, section 3): alpha, the ratio of the mean lengths of
    the real side's image features and caption vectors, gives both the same weight. Unlike the plain distance it
    rises when captions are given to other images. UserError where an image lacks a caption or captions are zero.
    """
    for images, texts in ((real, real_texts), (fake, fake_texts)):
        check_features(images, fewest=2, metric="the joint Fréchet distance")
        if len(images) != len(texts):
            raise UserError(f"{len(images)} images have {len(texts)} caption vectors; each needs one")
    check_features(real_texts, fake_texts, fewest=2, metric="the joint Fréchet distance")
    length = mean_length(real_texts)
    if length == 0:
        raise UserError("the caption vectors are all zero; is the weights file of CLIP damaged?")
    alpha = mean_length(real) / length
    joined = (torch.cat([x.double(), alpha * t.double()], dim=1) for x, t in ((real, real_texts), (fake, fake_texts)))
    return frechet_distance(*map(statistics, joined))  # one side in float64 at a time


def mean_length(features: Tensor) -> float:
    """Mean Euclidean length of the rows of [N, C]."""
    return float(features.norm(dim=1, dtype=torch.float64).mean())

"""Which caption's vector does a linear reader, taught on the real images, see in each image? For captions that
nearly every image has to itself. Pure functions of tensors."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evaluation.metrics import ridge
from evaluation.metrics.features import check_features
from evaluation.metrics.ridge import Ridge
from evaluation.metrics.text_agreement import DISTRACTORS, EQUAL, Retrieval, candidates, distinct, ranked, retrieval
from toolkit.errors import UserError

PLACES = 10
"""Of text_top10."""
CHUNK = 32
NAME = "the text probe"


def fit(features: Tensor, texts: Tensor) -> Ridge:
    """Features [N, C] of real images and the vectors [N, E] of their captions -> the reader, by `ridge.fit`.

    Raises UserError for fewer than 3 images, and where features or vectors are the same for all of them.
    """
    check_features(features, fewest=3, metric=NAME)
    check_features(texts, fewest=3, metric=NAME)
    if len(features) != len(texts):
        raise UserError(f"{len(features)} images have {len(texts)} text vectors; each needs one")
    for rows, what in ((features, "features"), (texts, "text vectors")):
        if (rows == rows[0]).all():
            raise UserError(f"the {what} of the {len(rows):,} real images are all equal: {NAME} can learn nothing")
    return ridge.fit(features, texts)


def judge(
    reader: Ridge, features: Tensor, texts: Tensor, captions: list[str], distractors: int = DISTRACTORS, seed: int = 0
) -> Retrieval | None:
    """How near each image's predicted vector is to its own caption's, among others': see `retrieval`.

    Features [N, C], vectors [N, E] and captions of N images. All vectors are taken from the mean of the real ones:
    what captions have in common is most of their vectors' length, and a ridge holds its predictions near the mean, so
    that from zero the captions nearest to that mean would be everybody's nearest. From the mean the hold shortens a
    prediction and leaves its direction. None where all captions are equal.
    """
    check_features(features, reader.mean[None], fewest=1, metric=NAME)
    check_features(texts, reader.bias[None], fewest=1, metric=NAME)
    return retrieval(reader.deviations(features), texts.double() - reader.bias, captions, distractors, seed)


def judge_left_out(
    reader: Ridge, texts: Tensor, captions: list[str], distractors: int = DISTRACTORS, seed: int = 0
) -> Retrieval | None:
    """`judge` of the N images that the reader was taught on, each by readers that were not taught it.

    With each of the other captions the own one is compared by a reader that has not seen that caption's (first) image
    either, nor either's vector in the mean: leave-pair-out (Airola et al. 2011, "An experimental comparison of
    cross-validation techniques for estimating the area under the ROC curve"). With the image alone left out, the
    others' vectors would be known and its own not, and unrelated images would stand below chance.
    """
    own, first = distinct(captions)
    chosen = candidates(own, len(first), distractors, seed)
    if chosen is None:
        return None
    texts = texts.double()
    total = texts.sum(dim=0)
    better, ties = [], []
    for rows in torch.arange(len(texts)).split(CHUNK):
        others = first[chosen[rows, 1:]]
        mine, theirs = texts[rows][:, None], texts[others]
        mean = (total - mine - theirs) / (len(texts) - 2)
        said = normalize(mine - reader.left_out_with(rows, others) - mean, dim=2)
        margin = (said * (normalize(theirs - mean, dim=2) - normalize(mine - mean, dim=2))).sum(dim=2)
        better.append((margin > EQUAL).sum(dim=1))
        ties.append((margin.abs() <= EQUAL).sum(dim=1))
    return ranked(torch.cat(better), torch.cat(ties), chosen.shape[1] - 1)

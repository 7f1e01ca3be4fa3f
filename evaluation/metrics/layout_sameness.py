"""Do two images of one caption have one layout? Pure functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.run_folder.probe import LUMINANCE


def layout_sameness(images: Tensor, captions: list[str]) -> float | None:
    """Mean correlation of luminance between two images of one caption, in [-1, 1]; uint8 [N, 3, H, W].

    The mean over the pairs of each caption, then over captions. About 0 for images that share nothing, 1 where all
    images of a caption are the same up to brightness, contrast and colour. None where no caption has two images.
    """
    grey = (images.float() * torch.tensor(LUMINANCE)[:, None, None]).sum(dim=1).flatten(1)
    grey = F.normalize(grey - grey.mean(dim=1, keepdim=True), dim=1)
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    found = []
    for members in rows.values():
        if (n := len(members)) > 1:
            total = grey[members].sum(dim=0).square().sum() - grey[members].square().sum()
            found.append(float(total) / (n * (n - 1)))
    return sum(found) / len(found) if found else None

"""How strongly R1 and R2 hold D's gradients: their weight, its rule of thumb, its course over the run."""

import math
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check

AUTO = 0.0002
"""StyleGAN2-ADA's heuristic: weight = AUTO * resolution^2 / batch (Karras et al. 2020, arXiv 2006.06676, its code's
configuration 'auto'; their gamma/2 |dD/dx|^2 is our lambda/2 |dD/dx|^2)."""

Weight = float | Literal["auto"]


DEFAULT = 0.1
"""Weight of R1 and of R2."""


@dataclass(frozen=True)
class PenaltyOptions:
    """Gradient penalties of D"""

    r1_penalty: Weight = DEFAULT
    """Lambda of the R1 penalty lambda/2 |dD/dx|^2 on real images; 0 = off; 'auto' = 0.0002 resolution^2 / batch."""
    r2_penalty: Weight = DEFAULT
    """The same penalty on generated images (R2); 0 = off; 'auto' as for R1."""
    r1_interval: int = 4
    """R1 and R2 every so many steps, multiplied by as much; 1 = every step."""
    r1_end: float = 1.0
    """Share of both weights that is left after r1_kimg, reached on half a cosine: strong at first, when D and G are far
    apart, weak in the end, when R1 would blur."""
    r1_kimg: float | None = None
    """Thousands of images until r1_end is reached (default: the whole run)."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("r1_penalty", "r2_penalty"):
            value = getattr(self, name)
            check(value == "auto" or 0 <= value < 1e9, name, value, "a finite number of at least 0, or 'auto'")
        check(1 <= self.r1_interval <= 10**9, "r1_interval", self.r1_interval, "a whole number of at least 1")
        check(0 <= self.r1_end < 1e9, "r1_end", self.r1_end, "a finite number of at least 0")
        check(self.r1_kimg is None or 0 < self.r1_kimg < 1e9, "r1_kimg", self.r1_kimg, "a number above 0")


def weight_of(penalty: Weight, resolution: int, batch: int) -> float:
    """The number that a weight stands for."""
    return AUTO * resolution**2 / batch if penalty == "auto" else penalty


def with_weights(config: dict) -> dict:
    """Recorded options with both weights as numbers: earlier versions recorded 'auto'."""
    names = {"r1_penalty", "r2_penalty"} & config.keys()
    return config | {name: weight_of(config[name], config["resolution"], config["batch"]) for name in names}


def share_left(images_seen: int, options: PenaltyOptions, total: int) -> float:
    """What the weights are multiplied by after `images_seen` of `total` images: from 1 to r1_end.

    1 + (r1_end - 1) (1 - cos(pi t)) / 2 with t the share of r1_kimg passed: the schedule of gamma in R3GAN (Huang et
    al. 2025, arXiv 2501.05441, appendix on training configurations).
    """
    if options.r1_end == 1:
        return 1.0
    length = total if options.r1_kimg is None else 1000 * options.r1_kimg
    t = min(1.0, images_seen / length)
    return 1 + (options.r1_end - 1) * (1 - math.cos(math.pi * t)) / 2

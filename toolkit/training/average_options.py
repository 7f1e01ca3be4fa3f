"""Options of the averaged generators."""

import re
from dataclasses import dataclass

from toolkit.errors import check, named_in


@dataclass(frozen=True)
class AverageOptions:
    """Averaged generator (EMA)"""

    ema_kimg: float | None = None
    """Half-life of the average in thousands of images that G has drawn, `batch` a step whatever d_steps is; replaces
    ema_decay when given."""
    ema_decay: float = 0.999
    """Decay per step of the averaged generator, which makes all samples."""
    ema_ramp: bool = True
    """Whether the decay grows as min(ema_decay, (1 + step) / (10 + step)). In short runs that decides every half-life:
    a decay d is reached at step (10 d - 1) / (1 - d), with ema_kimg 4 and batch 8 at step 6,489."""
    ema_rampup: float = 0.0
    """Longest half-life of any average as a share of the images drawn so far (StyleGAN2-ADA: 0.05); 0 = no limit."""
    ema_start: int = 0
    """Steps before averaging starts; until then the average equals G."""
    standing_images: int = 1024
    """Images that each average draws before it is sampled, scored or saved, to find the batch-norm statistics of its
    own (g_norm batch): averaged ones are too large and cost contrast. 0 = take those."""
    ema_profiles: str = ""
    """Half-lives of further averages, counted as ema_kimg is, such as 5,20,80: each in a file of its own in every
    checkpoint, for `python -m evaluation.choose_average`; '' = none."""

    @property
    def profiles(self) -> dict[str, float]:
        """The averages beside the main one, shortest first: 'ema_5kimg' -> 5.0, the half-life in thousands of
        images."""
        return {f"ema_{kimg:.9g}kimg": kimg for kimg in sorted(map(float, named_in(self.ema_profiles)))}

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")
        check(0 <= self.ema_start <= 2**62, "ema_start", self.ema_start, "a whole number of at least 0")
        check(0 <= self.ema_rampup <= 1, "ema_rampup", self.ema_rampup, "from 0 to 1")
        check(self.ema_kimg is None or 0 < self.ema_kimg < 1e9, "ema_kimg", self.ema_kimg, "a number above 0")
        standing = self.standing_images
        check(standing == 0 or 64 <= standing <= 10**6, "standing_images", standing, "from 64 to 1000000, or 0")
        half_lives = named_in(self.ema_profiles)
        check(
            all(map(_is_half_life, half_lives)) and len(set(map(float, half_lives))) == len(half_lives),
            "ema_profiles",
            self.ema_profiles,
            "different numbers of thousands of images from 0.001 to below 1000000, joined by commas, such as 5,20,80",
        )


def _is_half_life(text: str) -> bool:
    """Plain decimals, at most three after the point: they stand in names of files."""
    return bool(re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text)) and float(text) > 0

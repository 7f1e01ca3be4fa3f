"""Options of reading the dataset."""

from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check


@dataclass(frozen=True)
class LoadingOptions:
    """Loading data"""

    workers: int | Literal["auto"] = "auto"
    """Data loading processes per training process; 0 loads in the training process. 'auto' starts there and goes up to
    the CPU cores while steps wait for their data and it helps."""
    resident: bool | Literal["auto"] = "auto"
    """Whether each process keeps the whole data set, decoded, in the memory of its device. 'auto': after 20 steps, if
    that takes no more than a quarter of what is then free."""
    max_bad: float = 0.01
    """Most damaged samples, as a share of those read so far (of 1,000 at least), that others may stand in for; more end
    the run, with 0 the first."""
    pairs: bool = False
    """Put two images of one caption side by side in every batch, and take minibatch_std over such twos: D then sees a G
    that draws one layout a caption. Each epoch still has every image once. For captions that several images share."""
    mirror: bool = False
    """Show D each real image as it is or flipped left to right, with equal chance: a data set of twice the size (the
    x-flips of StyleGAN2-ADA, arXiv 2006.06676), for images and captions that do not tell left from right. Samples,
    scores and evaluation keep the images as they are; diffaug's flip is for real and generated ones alike."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        check(self.workers == "auto" or self.workers >= 0, "workers", self.workers, "a whole number of at least 0")
        check(0 <= self.max_bad <= 1, "max_bad", self.max_bad, "from 0 to 1")

"""Options of augmenting what D sees."""

from dataclasses import dataclass

from toolkit.errors import check, named_in

DIFFAUG_NAMES = ("color", "translation", "cutout", "flip")


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation"""

    diffaug: str = "translation"
    """DiffAugment policy for real and fake: any of color, translation, cutout, flip, joined by commas; '' = off."""
    augment_p: float = 1.0
    """Probability of each transform of diffaug for each image; adaptive_augment starts from 0 instead."""

    @property
    def diffaug_names(self) -> tuple[str, ...]:
        return named_in(self.diffaug)

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        check(0 <= self.augment_p <= 1, "augment_p", self.augment_p, "from 0 to 1")
        unknown = [name for name in self.diffaug_names if name not in DIFFAUG_NAMES]
        check(not unknown, "diffaug", self.diffaug, f"names out of {', '.join(DIFFAUG_NAMES)}, joined by commas")

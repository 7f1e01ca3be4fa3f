"""What training may adjust by itself while it runs, each on its own flag: augmentation, D steps, R1."""

from dataclasses import dataclass

from toolkit.errors import check


@dataclass(frozen=True)
class AdaptiveOptions:
    """Switches and targets of what adapts."""

    adaptive_augment: bool = False
    """Raise or lower the probability of augmentation, from 0, so that D's verdict on real pictures meets ada_target."""
    ada_target: float = 0.6
    """Target of the mean sign of D's logits on real pictures: above it D overfits."""
    ada_kimg: float = 500.0
    """Thousands of pictures for the augmentation probability to go from 0 to 1 at most."""
    adaptive_d_steps: bool = False
    """1 or 2 D steps per G step by D's relative strength; d_steps is where it starts."""
    adaptive_r1: bool = False
    """Scale R1 and R2 between 1/10 and 10 times r1_penalty by the same signal as adaptive_augment."""

    def check_adaptive(self) -> None:
        """Raises UserError for a value out of range."""
        check(-1 < self.ada_target < 1, "ada_target", self.ada_target, "between -1 and 1")
        check(0 < self.ada_kimg < 1e9, "ada_kimg", self.ada_kimg, "a number above 0")

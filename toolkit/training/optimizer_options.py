"""Options of the optimizers."""

from dataclasses import dataclass

from toolkit.errors import check


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizers"""

    lr_g: float = 2.5e-4
    """Learning rate of G (Adam)."""
    lr_d: float = 5e-4
    """Learning rate of D (Adam); above lr_g for two time-scale training (TTUR)."""
    frozen_lr: float = 0.1
    """What lr_d is multiplied by for the heads on a frozen backbone, the matching head among them."""
    frozen_text_lr: float = 0.1
    """The same for the layers of these heads that read the text."""
    d_steps: int = 2
    """D steps per G step, each on fresh images: 1 or 2, up to 8."""
    beta1: float = 0.0
    """Adam's beta1 of both networks."""
    beta2: float = 0.99
    """Adam's beta2 of both networks."""
    grad_clip: float = 0.0
    """Largest L2 norm of each network's gradient; 0 = no clipping."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("lr_g", "lr_d"):
            check(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        for name in ("frozen_lr", "frozen_text_lr"):
            check(0 < getattr(self, name) <= 100, name, getattr(self, name), "above 0 and at most 100")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        check(0 <= self.grad_clip < 1e9, "grad_clip", self.grad_clip, "a finite number of at least 0")
        check(1 <= self.d_steps <= 8, "d_steps", self.d_steps, "from 1 to 8")

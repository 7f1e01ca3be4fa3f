"""Options of precision, compilation and processes."""

from dataclasses import dataclass
from typing import Literal

from toolkit.errors import check


@dataclass(frozen=True)
class ComputeOptions:
    """Precision, compilation, processes"""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of both networks; by default what `accelerate launch --mixed_precision` says. fp16 needs a GPU."""
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """Compile both losses with torch.compile, 'reduce-overhead' into CUDA graphs too: a minute or two at the start for
    faster steps on a GPU. What cannot be compiled runs as it is, with a line to say so."""
    sync_bn: bool = False
    """Batch-norm statistics over the images of all processes (GPUs only); without it each uses its own share."""
    timeout: float = 1800
    """Seconds a process waits for another before the run ends with an error."""
    check_ranks_every: int = 1000
    """Steps between comparisons of the networks of all processes, which must be bitwise equal; 0 = never."""

    def validate(self) -> None:
        """Raises UserError for a value out of range."""
        check(1 <= self.timeout <= 10**7, "timeout", self.timeout, "at least 1 second")
        every = self.check_ranks_every
        check(0 <= every <= 2**62, "check_ranks_every", every, "a whole number of at least 0")

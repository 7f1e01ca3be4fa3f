"""What a step hands to its device: operations, a number without noise, and floating-point operations."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

NOTHING_TO_DO = {"detach", "empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh"}
"""Operations that compute nothing and are no views by their schema."""


class Operations(TorchDispatchMode):
    """Counts the operations within; views, which launch nothing, and memory requests do not count.

    An operation on a list of tensors (`_foreach_*`, fused Adam) counts as one, as it is to the interpreter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.flops = 0
        """Two per multiplication and addition, of convolutions and matrix products."""
        self._paused = False
        self._patched: list[tuple[object, str]] = []

    @property
    def count(self) -> int:
        return self.names.total()

    def without(self, owner: object, method: str) -> None:
        """Until the end, leave out what `owner.method` does."""
        inner = getattr(owner, method)

        def uncounted(*arguments: Any, **options: Any) -> Any:
            self._paused = True
            try:
                return inner(*arguments, **options)
            finally:
                self._paused = False

        setattr(owner, method, uncounted)
        self._patched.append((owner, method))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for owner, method in self._patched:
            delattr(owner, method)  # the class's own shows again

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not (self._paused or function.is_view or function.namespace != "aten" or name in NOTHING_TO_DO):
            self.names[name] += 1
            if (flops := flop_registry.get(function.overloadpacket)) is not None:
                self.flops += flops(*args, **(kwargs or {}), out_val=found)
        return found

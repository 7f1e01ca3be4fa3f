"""SIGTERM and Ctrl-C end a run at the next step with a checkpoint; a second Ctrl-C ends it at once."""

import signal

import torch


class StopRequest:
    """Handlers only set a flag; processes agree on it between steps, so that none waits for another."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, accelerator) -> bool:
        """True on all processes if any was signalled; all of them call it at the same step."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        flag = torch.tensor([self.signal or 0], device=accelerator.device)
        number = int(accelerator.gather(flag).max())
        self.signal = number or None
        return number > 0

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

"""toolkit/train.py with a fault: `--fault NAME:PROCESS:STEP` beside its own options.

PROCESS suffers it once STEP steps are done, in the first life of its process group only (torchrun --max-restarts).
"""

import os
import signal
import sys
import time
from pathlib import Path

from toolkit import train
from toolkit.command_line import run
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import ShardDataset
from toolkit.training.trainer import Trainer


def signalled(number: int, step: int) -> None:
    loss = Trainer.generator_loss

    def signalled_loss(self, batch, noise):
        if self.step_number == step:
            os.kill(os.getpid(), number)
        return loss(self, batch, noise)

    Trainer.generator_loss = signalled_loss


def killed(step: int) -> None:
    signalled(signal.SIGKILL, step)


def stopped(step: int) -> None:
    signalled(signal.SIGSTOP, step)


def hanging_reads(step: int) -> None:
    """With batches of 8. OUT_DIR/hanging shows that it has come to that."""
    get = ShardDataset.__getitem__
    mark = Path(sys.argv[sys.argv.index("--out_dir") + 1]) / "hanging"

    def hanging(self, position):
        if position >= 8 * step:
            mark.touch()
            time.sleep(600)
        return get(self, position)

    ShardDataset.__getitem__ = hanging


def main() -> None:
    where = sys.argv.index("--fault")
    name, process, step = sys.argv[where + 1].split(":")
    del sys.argv[where : where + 2]
    if os.environ.get("RANK", "0") == process and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        {"killed": killed, "stopped": stopped, "hanging_reads": hanging_reads}[name](int(step))
    run(train.main, ResolvedConfig)


if __name__ == "__main__":
    main()

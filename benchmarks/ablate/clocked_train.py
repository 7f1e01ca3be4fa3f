"""toolkit/train.py by the clock of its own CPU time, for machines that do other work besides.

The same command and the same training; only images_per_second in its log counts images per second of this process's
CPU time instead of seconds on the wall.
"""

import time
from types import SimpleNamespace

import toolkit.training.run
from toolkit.command_line import run
from toolkit.config import TrainConfig
from toolkit.train import main

if __name__ == "__main__":
    toolkit.training.run.time = SimpleNamespace(perf_counter=time.process_time)
    run(main, TrainConfig)

"""Captioned images -> shards: `python -m shards.create --input DIR --out OUT --size 128`."""

import signal
import sys

from shards.building.options import CreateOptions
from toolkit.command_line import run


def main(options: CreateOptions) -> None:
    from shards.building.creation import create  # here: worker processes import this file too, and would load torch

    create(options)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `kill` too leaves no half-written file
    run(main, CreateOptions)

"""toolkit/train.py that notes what each process reads: lines [position, sample number, caption] in READING_LOG/RANK."""

import json
import os
from pathlib import Path

from toolkit import train
from toolkit.command_line import run
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import Item, ShardDataset

read = ShardDataset.__getitem__


def noted(self: ShardDataset, position: int) -> Item:
    item = read(self, position)
    with (Path(os.environ["READING_LOG"]) / os.environ.get("RANK", "0")).open("a", encoding="utf-8") as file:
        file.write(json.dumps([position, self.sample_at(position), item.caption]) + "\n")
    return item


if __name__ == "__main__":
    ShardDataset.__getitem__ = noted
    run(train.main, ResolvedConfig)

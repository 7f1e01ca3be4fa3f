"""G's batch norm over two GPUs: torchrun ... synced_norm.py SHARDS OUT. Process K writes OUT/rank_K.safetensors."""

import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.running import TINY
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.launching.launch import start_accelerator
from toolkit.training.trainer import Trainer


def main() -> None:
    shards, out = map(Path, sys.argv[1:3])
    config = ResolvedConfig(data=str(shards), timeout=120, **TINY | {"g_norm": "batch", "sync_bn": True})
    accelerator = start_accelerator(config)
    trainer = Trainer(config, accelerator, ShardSet(shards))
    trainer.step()
    state = {name: value.cpu().contiguous() for name, value in trainer.unwrap(trainer.G).state_dict().items()}
    save_file(state, out / f"rank_{accelerator.process_index}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main()

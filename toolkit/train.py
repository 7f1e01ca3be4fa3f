"""Command: accelerate launch toolkit/train.py --config configs/t4.yaml --data SHARDS --out_dir RUN."""

import sys
from pathlib import Path

from toolkit.command_line import dump, run
from toolkit.config import TrainConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.launch import check_data, start_accelerator
from toolkit.networks.models import Discriminator, Generator, count_parameters
from toolkit.run import Run, describe_end, prepare_folder
from toolkit.run_folder import checkpoint
from toolkit.trainer import Trainer


def main(config: TrainConfig) -> None:
    if config.dry_run:
        sizes = {kind.__name__: f"{count_parameters(kind(config)):,} parameters" for kind in (Generator, Discriminator)}
        print(dump(config) + "".join(f"# {name}: {size}\n" for name, size in sizes.items()), end="")
        return
    if not config.data:
        raise UserError("no data: pass --data SHARDS (made by python -m shards.create)")
    shards = ShardSet(config.data)
    check_data(config, shards)
    start = find_start(config)
    accelerator = start_accelerator(config)
    trainer = Trainer(config, accelerator, shards)
    if start is not None:
        trainer.resume(start)
        accelerator.print(f"resuming from {start} at step {trainer.step_number:,}", file=sys.stderr)
    prepare_folder(trainer)
    stopped_by = Run(trainer).fit()
    accelerator.print(describe_end(trainer, stopped_by), file=sys.stderr)
    accelerator.end_training()
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


def find_start(config: TrainConfig) -> Path | None:
    """The checkpoint to resume from, or None to start anew. Raises UserError if that would mix two runs."""
    out_dir = Path(config.out_dir)
    if config.resume_from is None:
        if checkpoint.checkpoints(out_dir):
            raise UserError(
                f"out_dir {out_dir} holds checkpoints of an earlier run; go on with --resume_from latest, or choose "
                "another --out_dir"
            )
        return None
    if config.resume_from != "latest":
        chosen = Path(config.resume_from)
        if later := checkpoint.later_in(out_dir, chosen):
            names = ", ".join(path.name for path in later)
            raise UserError(
                f"out_dir {out_dir} holds later checkpoints ({names}), which 'latest' would take for this run's; "
                "move them away or choose another --out_dir"
            )
        return chosen
    newest, passed_over = checkpoint.newest_valid(out_dir)
    for line in passed_over:
        print(f"train: {line}", file=sys.stderr)
    if newest is None:
        raise UserError(f"--resume_from latest: {out_dir} holds no valid checkpoint")
    return newest


if __name__ == "__main__":
    run(main, TrainConfig)

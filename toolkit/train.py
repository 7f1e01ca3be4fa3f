"""Command: accelerate launch toolkit/train.py --config configs/t4.yaml --data SHARDS --out_dir RUN."""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial

from toolkit.checks import memory
from toolkit.checks.micro_batch import largest_micro_batch
from toolkit.command_line import dump, run
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.health.score import Scoring, SwdScore
from toolkit.launching import stopping
from toolkit.launching.launch import check_data, start_accelerator
from toolkit.launching.processes import Processes
from toolkit.launching.start import open_run_folder
from toolkit.networks.cost import describe_networks
from toolkit.run_folder import checkpoint
from toolkit.training.earlier import as_begun
from toolkit.training.run import Run, describe_end
from toolkit.training.trainer import Trainer


def main(options: TrainConfig) -> None:
    config = options.resolved()
    if config.dry_run:
        if config.data and config.evaluates:
            check_evaluation(config, open_shards(config.data))
        print(dump(config) + "".join(f"# {line}\n" for line in describe_networks(config)), end="")
        return
    if not config.data:
        raise UserError("no data: pass --data SHARDS (made by python -m shards.create)")
    shards = open_shards(config.data)
    check_data(config, shards)
    check_evaluation(config, shards)
    stopping.follow_launcher()
    accelerator = start_accelerator(config)
    config = dataclasses.replace(config, mixed_precision=accelerator.mixed_precision)  # recorded as it is used
    processes = Processes(accelerator, config.timeout)
    start = open_run_folder(config, processes)
    tell = partial(print, file=sys.stderr) if processes.main else lambda line: None
    if start.checkpoint is not None:
        config, older = as_begun(config, checkpoint.recorded_options(start.checkpoint))
        if older:
            values = ", ".join(f"{name} {value}" for name, value in older.items())
            tell(f"the checkpoint is older than these options, it goes on as it was begun: {values}")
    try:
        trainer = Trainer(config, accelerator, shards)
        if start.checkpoint is not None:
            changed = trainer.resume(start.checkpoint)
            tell(f"resuming from {start.checkpoint} at step {trainer.step_number:,}")
            for line in changed:
                tell(f"changed since then: {line}")
        show_memory(trainer, options.tries_batch_gpu, tell)
        this = Run(trainer, processes, choose_scoring(config, shards, processes))
        this.fit()
    except RuntimeError as error:
        if memory.is_out_of_memory(error):
            raise UserError(memory.explain_out_of_memory(config, accelerator.device)) from None
        raise
    tell(describe_end(this))
    accelerator.end_training()
    if this.request:
        sys.exit(stopping.exit_code(this.request))
    if isinstance(this.reason, UserError):
        raise this.reason


def show_memory(trainer: Trainer, tries: bool, tell: Callable[[str], None]) -> None:
    """Tell the estimate; with `tries` (batch_gpu 'auto'), find what fits first."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    if tries:
        found = largest_micro_batch(trainer, config.batch // processes)
        trainer.configure(dataclasses.replace(config, batch_gpu=found))
        tell(f"batch_gpu auto: {found} images at once, {trainer.parts} times")
    encoder = trainer.shards.manifest.encoder.name
    tell(memory.estimate(trainer.config, processes, trainer.accelerator.mixed_precision, encoder).describe())


# Evaluation stands above the toolkit; this command alone reaches up to it, when asked to.


def check_evaluation(config: ResolvedConfig, shards: ShardSet) -> None:
    """Raises UserError, before anything is started, for a metric, score or file of weights that is not there."""
    if config.evaluates:
        from evaluation import during_training

        during_training.check(config, shards)


def choose_scoring(config: ResolvedConfig, shards: ShardSet, processes: Processes) -> Scoring:
    """What the config says is measured. All processes call it. Raises UserError."""
    scoring = Scoring()
    if config.score == "swd":
        swd = SwdScore(shards, config)
        scoring = Scoring("swd", score=lambda trainer: swd(trainer.ema))
    if config.evaluates:
        from evaluation import during_training

        scoring = scoring._replace(evaluate=during_training.evaluator(config, shards, processes))
        if config.scored_by_evaluation:
            metric, higher_is_better = during_training.score_name(config)
            scoring = scoring._replace(metric=metric, higher_is_better=higher_is_better)
    return scoring


if __name__ == "__main__":
    run(main, TrainConfig)

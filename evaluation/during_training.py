"""Scores of a generator while it trains: the same engine as `python -m evaluation`, on the training's processes."""

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from evaluation.options import MeasureOptions
from evaluation.run_scores.score_names import parse
from evaluation.scoring.evaluator import FEWEST, Evaluator, Setting
from evaluation.scoring.judges import refuse_own
from evaluation.scoring.pipeline import with_images
from evaluation.scoring.scores import metric_giving, named, parse_metrics
from evaluation.sources.generated import generated_source
from evaluation.sources.shard_images import shard_images
from evaluation.sources.source import GROUP, Source, chosen
from toolkit.config import ResolvedConfig
from toolkit.data.dataset import sound_numbers
from toolkit.data.feature_cache import FeatureCache, default_folder
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.launching.processes import Processes
from toolkit.training.trainer import Trainer

Evaluate = Callable[[Trainer], dict | None]


def check(config: ResolvedConfig, shards: ShardSet) -> None:
    """What can be said before anything is loaded. Raises UserError."""
    score_name(config)
    refuse_own(
        config.frozen_backbone,
        shards.manifest.encoder if config.clip_guidance else None,
        options_of(config),
        "leave them out of --metrics and --score here, and score by another network afterwards (python -m evaluation "
        "--clip_model NAME --clip_pretrained TAG, --dinov2_model NAME)",
    )
    count = min(config.evaluation_count, len(shards))
    if count < FEWEST:
        raise UserError(
            f"an evaluation needs at least {FEWEST} images, here are {count}; pass --score swd and --eval_every 0"
        )
    if config.score_weights and not Path(config.score_weights).is_file():
        raise UserError(f"no Inception weights at {config.score_weights}; correct --score_weights or pass --score swd")


def options_of(config: ResolvedConfig) -> MeasureOptions:
    """The metrics of the config, and the one its score needs."""
    metrics = parse_metrics(config.metrics) if config.eval_every else []
    if (wanted := metric_of(config)) and wanted not in metrics:
        metrics = [*metrics, wanted]
    weights = Path(config.score_weights) if config.score_weights else None
    return MeasureOptions(metrics=",".join(metrics), weights=weights, feature_layer=config.score_layer)


def metric_of(config: ResolvedConfig) -> str | None:
    """The metric that gives the config's score; None for swd and none. Raises UserError for an unknown one."""
    if config.score in ("none", "swd"):
        return None
    return metric_giving(config.score, others=("none", "swd"))


def score_name(config: ResolvedConfig) -> tuple[str, bool]:
    """The key in a report's "scores" that config.score means, and whether higher is better. Raises UserError."""
    metric = metric_of(config)
    if config.eval_every:
        parse_metrics(config.metrics)
    if metric is None:
        return config.score, False
    return named(config.score, metric, options_of(config)), not parse(config.score).lower_is_better


class TrainingEvaluator:
    """Of `eval_count` training images against as many drawn for their captions; the same ones every time.

    All processes make one and call it at the same points. Nothing of the training is changed by it. Networks and
    reference are loaded when the first evaluation is due, and stay.
    """

    def __init__(self, config: ResolvedConfig, shards: ShardSet, processes: Processes) -> None:
        self.config, self.shards, self.processes = config, shards, processes
        self.options = options_of(config)
        self._evaluator: Evaluator | None = None

    def __call__(self, trainer: Trainer) -> dict | None:
        """The report on the main process, None on the others. Raises UserError, on all of them alike."""
        until = time.monotonic() + self.config.evaluation_seconds
        if self._evaluator is None:
            self.processes.together(self._open)
            # Where TEXT_GAN_CACHE says; else a training writes nothing outside its own folder.
            cache = FeatureCache(default_folder()) if os.environ.get("TEXT_GAN_CACHE") else None
            setting = Setting(self.processes, trainer.device, seed=self.config.seed, cache=cache)
            self._evaluator = Evaluator(self.options, self.real, setting)
        fake = self._drawn_by(trainer)
        report = self._evaluator(fake, until)
        if report is None:
            return None
        report["protocol"]["step"] = trainer.step_number
        return with_images(report, self.real, fake)

    def _open(self) -> None:
        """The choice that `python -m evaluation --count` makes, so that it finds the same numbers; but damaged samples
        are passed over: what is drawn and scored must not end a run."""
        order = chosen(len(self.shards), None, self.config.seed)
        whole_groups = -(-self.config.evaluation_count // GROUP) * GROUP
        numbers = [n for n, _ in itertools.islice(sound_numbers(self.shards, order), whole_groups)]
        self.real = shard_images(self.shards, self.config.data, sorted(numbers[: self.config.evaluation_count]))
        texts = [self.shards.read_texts(n) for n in numbers]
        self.captions = [one.captions[0] for one in texts]
        self.text = torch.stack([one.vectors[0] for one in texts])

    def _drawn_by(self, trainer: Trainer) -> Source:
        source = generated_source(
            trainer.ema.module,
            self.config.z_dim,
            self.config.resolution,
            self.captions,
            self.text,
            self.real.count,
            self.config.seed,
            f"step {trainer.step_number}",
            self.shards.manifest.encoder,
            self.config.data,
        )
        return replace(source, frozen_backbone=self.config.frozen_backbone, guided=trainer.guided)


def evaluator(config: ResolvedConfig, shards: ShardSet, processes: Processes) -> Evaluate:
    """As `toolkit.health.reports` knows it."""
    return TrainingEvaluator(config, shards, processes)

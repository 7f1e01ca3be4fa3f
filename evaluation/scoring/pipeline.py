"""From the options of a command to reports: opens what is compared, on every process alike."""

from collections.abc import Iterator
from pathlib import Path

import torch

from evaluation.options import EvaluationOptions
from evaluation.scoring.evaluator import Evaluator, Setting
from evaluation.scoring.pairs import draw_pairs
from evaluation.sources.opening import is_checkpoint, is_shards, open_source
from evaluation.sources.source import Source
from toolkit.data.feature_cache import FeatureCache, default_folder
from toolkit.devices import pick_device
from toolkit.errors import UserError
from toolkit.launching.launch import join_processes


def evaluate(options: EvaluationOptions) -> Iterator[dict]:
    """The report of each of `options.fake`, in order, on the main process; nothing on the others. Raises UserError.

    A report holds "scores", "protocol", "notes"; where a metric makes them "prompts" and "nearest", and with the latter
    "images", a PIL image of the pairs.
    """
    processes = join_processes()
    device = pick_device(options.device)
    real = _open_real(options, device)
    cache = None if options.cache == "" else FeatureCache(Path(options.cache) if options.cache else default_folder())
    setting = Setting(processes, device, options.batch, options.seed, options.allow_few, cache)
    evaluator = None
    for path in options.fake:
        fake = _open_fake(options, path, real, device)
        evaluator = evaluator or Evaluator(options, real, setting)  # after the paths are known to be good
        report = evaluator(fake)
        if report is not None:
            yield with_images(report, real, fake)


def single(options: EvaluationOptions, metric: str, network: str) -> dict | None:
    """The report on one source as the commands for one score give it, what tells of that score without levels."""
    for report in evaluate(options):
        protocol = report["protocol"]
        protocol |= protocol.pop(network) | protocol["metrics"].pop(metric, {})
        return {**report["scores"], "protocol": protocol, "notes": report["notes"]}
    return None


def with_images(report: dict, real: Source | None, fake: Source) -> dict:
    """Adds "images" where the report names nearest training images."""
    if "nearest" not in report:
        return report
    assert real is not None  # memorisation, which found them, compares with real images
    return report | {"images": draw_pairs(report["nearest"], real, fake)}


def _open_real(options: EvaluationOptions, device: torch.device) -> Source | None:
    if options.real is None:
        return None
    prompts = options.prompts or (options.real if is_shards(options.real) else None)
    return open_source(
        options.real, options.count, options.size, options.seed, prompts, device, options.encoder_weights
    )


def _open_fake(options: EvaluationOptions, path: str, real: Source | None, device: torch.device) -> Source:
    """A checkpoint takes prompts and count from shards as reference, if nothing else is said."""
    prompts, count = options.prompts, options.count
    if prompts is None and options.real is not None and is_shards(options.real):
        prompts = options.real
    if count is None and real is not None and is_checkpoint(path):
        count = real.count
    if options.truncation != 1 and not is_checkpoint(path):
        raise UserError(f"truncation scales a checkpoint's noise, and --fake {path} is none; leave --truncation out")
    return open_source(
        path, count, options.size, options.seed, prompts, device, options.encoder_weights, options.truncation
    )

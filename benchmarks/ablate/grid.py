"""GRID.yaml: what is varied, what is held equal. A wrong grid is refused in one line before anything is trained."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path

import yaml

from benchmarks.ablate.reference import REFERENCE
from evaluation import during_training
from evaluation.compare.runs import NEUTRAL
from toolkit.command_line import parse
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_reader import ShardSet
from toolkit.durable import file_sha256
from toolkit.errors import UserError, check, nearest

KEYS = ("data", "test", "kimg", "seeds", "evaluate", "control", "criterion", "base", "variants")
EVALUATE = {"times": "4", "count": "1000", "metrics": "fid,kid,precision_recall,diversity,probe", "weights": "",
            "layer": "2048"}  # fmt: skip
OURS = ("data", "out_dir", "resume_from", "iters", "kimg", "seed", "resolution", "cond_dim", "score", "score_weights",
        "score_layer", "eval_every", "eval_count", "metrics", "eval_minutes", "timeout", "log_every", "sample_every",
        "ckpt_every", "keep", "track", "dry_run", "patience")  # fmt: skip
"""Options that the grid decides, the same way for every variant."""
FILES = ("frozen_weights", "clip_guidance_weights", "perceptual_weights")
"""Options that name a file, which counts by what it holds."""
HEADS = ("frozen_width", "frozen_kernel", "frozen_std", "frozen_weight", "frozen_lr", "frozen_text_lr", "frozen_r1")
"""Options without effect where there is no frozen_backbone."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")
NOTHING = ("", "null", "~")
LINES = 10
"""Log lines between two evaluations, of which the two that hold samples and plots do not count for the speed."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluations during each training."""

    times: int
    count: int
    """Images, real and generated each."""
    metrics: str
    weights: Path | None
    layer: str


@dataclass(frozen=True)
class Grid:
    """A checked grid. Options are text, as they would stand after a flag."""

    name: str
    data: str
    test: str | None
    kimg: float
    seeds: tuple[int, ...]
    evaluate: Evaluate
    control: str
    criterion: str
    base: dict[str, str]
    variants: dict[str, dict[str, str]]
    on_gpu: bool = False

    @cached_property
    def shards(self) -> ShardSet:
        return open_shards(self.data)

    @cached_property
    def weights_sha256(self) -> str | None:
        return file_sha256(self.evaluate.weights) if self.evaluate.weights else None

    def order(self) -> list[str]:
        """The variants, the control first."""
        return [self.control, *(name for name in self.variants if name != self.control)]

    def config(self, variant: str, seed: int = 0, folder: Path = Path("run")) -> ResolvedConfig:
        """What is trained. A variant with a `config` of its own stands on that instead of the base."""
        own = self.variants[variant]
        options = own if "config" in own else {**self.base, **own}
        fixed = {
            "data": self.data, "kimg": f"{self.kimg!r}",
            "resolution": str(self.shards.manifest.resolution), "cond_dim": str(self.shards.manifest.encoder.dimension),
            "metrics": self.evaluate.metrics, "eval_count": str(self.evaluate.count),
            "score_weights": str(self.evaluate.weights or "null"), "score_layer": self.evaluate.layer, "score": "none",
            "eval_minutes": "600", "timeout": "86400", "eval_every": "1", "keep": "2", "track": "", "patience": "0",
            "resume_from": "null", "dry_run": "false",
        }  # fmt: skip
        if not self.on_gpu and "workers" not in options:
            fixed["workers"] = "0"  # a process of its own would not count as the training's CPU time
        try:
            config = _parse(tuple(f"--{name}={value}" for name, value in {**options, **fixed}.items()))
        except UserError as error:
            raise UserError(f"variant {variant}: {error}") from None
        every = max(1, round(self.kimg * 1000 / (self.evaluate.times * config.batch * config.d_steps)))
        return replace(
            config, seed=seed, out_dir=str(folder), eval_every=every, sample_every=every, ckpt_every=every,
            log_every=max(1, every // LINES),
        )  # fmt: skip

    def definition(self, variant: str) -> dict:
        """What the numbers of a variant are a function of, but for the seed, whatever today's defaults are. Files are
        told by their SHA-256."""
        evaluate, options = self.evaluate, apart_from(self.config(variant), REFERENCE)
        return {
            "options": options | {name: _content(options[name]) for name in FILES if options.get(name)},
            "data": self.shards.manifest.fingerprint,
            "evaluation": {"times": evaluate.times, "count": evaluate.count, "metrics": evaluate.metrics,
                           "layer": evaluate.layer, "weights_sha256": self.weights_sha256},
        }  # fmt: skip

    def criterion_score(self) -> str:
        """The criterion as reports name it: 'fid' on layer 768 is 'fid_768'. Raises UserError."""
        config = replace(self.config(self.control), score=self.criterion)
        metric = during_training.metric_of(config)
        if metric is None or metric not in [name.strip() for name in config.metrics.split(",")]:
            raise UserError(f"criterion is '{self.criterion}', which the metrics {config.metrics} do not give")
        return during_training.score_name(config)[0]


@cache
def _parse(flags: tuple[str, ...]) -> ResolvedConfig:
    return parse(TrainConfig, list(flags)).resolved()


@cache
def _content(file: str) -> str:
    """Of its SHA-256 what tells it apart; once for all variants and seeds."""
    return file_sha256(Path(file))[:16]


def fingerprint(definition: dict) -> str:
    """Equal exactly for equal definitions."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def apart_from(config: ResolvedConfig, usual: dict) -> dict:
    """The options that leave a trace in the trained network, where they are not as in `usual`."""
    idle = () if config.frozen_backbone else HEADS
    found = asdict(config).items()
    return {name: value for name, value in found if name not in (*NEUTRAL, *idle) and value != usual[name]}


class _Loader(yaml.BaseLoader):
    """Every value is text: PyYAML would read 1e-4 as text and 'no' as False. Equal keys are refused."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        doubled = next((key for key in keys if keys.count(key) > 1), None)
        if doubled is not None:
            raise UserError(f"the key '{doubled}' stands twice (line {node.start_mark.line + 1} on)")
        return super().construct_mapping(node, deep)


def read_grid(path: Path, on_gpu: bool = False) -> Grid:
    """The grid in a file, every variant's config tried out. Raises UserError, with the file's name."""
    try:
        return _checked(_parsed(path), path, on_gpu)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _parsed(path: Path) -> dict:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError("must hold 'name: value' lines")
    _known(content, KEYS, "the grid")
    lacking = [key for key in ("data", "kimg", "variants") if key not in content]
    if lacking:
        raise UserError(f"the grid lacks {', '.join(lacking)}")
    return content


def _checked(content: dict, path: Path, on_gpu: bool) -> Grid:
    variants = {name: _options(given, f"variant {name}", path) for name, given in _map(content, "variants").items()}
    check(bool(variants), "variants", [], "at least one variant")
    for name in variants:
        check(
            NAME.fullmatch(name) is not None, "a variant's name", name, "letters, digits, _ . + - (it names a folder)"
        )
    control = content.get("control", next(iter(variants)))
    check(control in variants, "control", control, f"one of the variants {', '.join(variants)}")
    test = content.get("test", "")
    grid = Grid(
        name=path.stem, data=_place(content["data"], path), test=None if test in NOTHING else _place(test, path),
        kimg=_number(content["kimg"], "kimg", float), seeds=_seeds(content.get("seeds", ["0"])),
        evaluate=_evaluate({**EVALUATE, **_map(content, "evaluate")}, path), control=control,
        criterion=content.get("criterion", "fid"), base=_options(content.get("base", {}), "base", path),
        variants=variants, on_gpu=on_gpu,
    )  # fmt: skip
    _try_out(grid)
    return grid


def _try_out(grid: Grid) -> None:
    """Every variant: its options, what its evaluations need, and that all see equal numbers of images."""
    check(0 < grid.kimg < 1e6, "kimg", grid.kimg, "a number of thousands of images above 0")
    configs = {name: grid.config(name) for name in grid.order()}
    for name, config in configs.items():
        if config.adaptive_d_steps:
            raise UserError(f"variant {name}: adaptive_d_steps shows D another number of images than the others")
    steps = {name: config.batch * config.d_steps for name, config in configs.items()}
    images, between = round(grid.kimg * 1000), math.lcm(*steps.values()) * grid.evaluate.times
    for name, size in steps.items():
        if images % (size * grid.evaluate.times):
            fits = max(1, round(images / between)) * between / 1000
            raise UserError(
                f"variant {name} shows {size} images a step, which do not divide {images:,} images with "
                f"{grid.evaluate.times} evaluations; kimg: {fits:g} suits all variants"
            )
    grid.criterion_score()
    during_training.check(configs[grid.control], grid.shards)
    if grid.test and len(open_shards(grid.test)) < grid.evaluate.count:
        raise UserError(f"test {grid.test} holds fewer images than count {grid.evaluate.count}")
    definitions: dict[str, str] = {}
    for name in configs:
        first = definitions.setdefault(fingerprint(grid.definition(name)), name)
        if first != name:
            raise UserError(f"variants {first} and {name} are the same training; remove one")


def _evaluate(given: dict, path: Path) -> Evaluate:
    _known(given, EVALUATE, "evaluate")
    weights = None if given["weights"] in NOTHING else Path(_place(given["weights"], path))
    if weights and not weights.is_file():
        raise UserError(f"evaluate: no Inception weights at {weights}")
    times, count = (_number(given[name], f"evaluate: {name}", int) for name in ("times", "count"))
    check(times >= 1, "evaluate: times", times, "at least 1")
    return Evaluate(times, count, given["metrics"], weights, given["layer"])


def _options(given: object, where: str, path: Path) -> dict[str, str]:
    if given in NOTHING:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where} must hold 'option: value' lines, found {given!r}")
    valid = [field.name for field in fields(TrainConfig) if field.name not in OURS]
    for name, value in given.items():
        if name in OURS:
            raise UserError(f"{where}: {name} is decided by the grid, for all variants alike")
        if name not in (*valid, "config"):
            raise UserError(f"{where}: unknown option '{name}'{nearest(name, [*valid, 'config'])}")
        if not isinstance(value, str):
            raise UserError(f"{where}: {name} is {value!r}; it must be one value")
    found = dict(given)
    for name in ("config", *FILES):
        if found.get(name, "") not in NOTHING:
            found[name] = _place(found[name], path)
            if not Path(found[name]).is_file():
                raise UserError(f"{where}: no {name} file {given[name]}")
    return found


def _place(name: object, path: Path) -> str:
    """A path beside the grid's file, else one from the working directory; an address as it is."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{name!r} is no path")
    beside = path.parent / name
    return str(beside) if beside.exists() else name


def _map(content: dict, key: str) -> dict:
    given = content.get(key, {})
    if not isinstance(given, dict):
        raise UserError(f"{key} must hold 'name: value' lines, found {given!r}")
    return given


def _seeds(given: object) -> tuple[int, ...]:
    listed = given if isinstance(given, list) else [given]
    seeds = tuple(_number(one, "seeds", int) for one in listed)
    check(bool(seeds) and len(set(seeds)) == len(seeds) and min(seeds) >= 0, "seeds", list(seeds), "different numbers")
    return seeds


def _number(text: object, name: str, kind: type):
    try:
        return kind(text)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {text!r}; it must be a number") from None


def _known(given: dict, valid, where: str) -> None:
    for name in given:
        if name not in valid:
            raise UserError(f"{where} knows no '{name}'{nearest(name, valid)}")

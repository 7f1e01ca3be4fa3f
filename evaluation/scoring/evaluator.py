"""From sources of images to a report: networks and reference are loaded once, then any number of sources scored."""

import hashlib
from functools import cached_property
from typing import NamedTuple

import torch

from evaluation.extractors.clip_images import ClipExtractor, load_clip
from evaluation.extractors.dinov2 import load_dinov2
from evaluation.extractors.extractor import Extractor
from evaluation.extractors.inception import load_inception
from evaluation.options import MeasureOptions
from evaluation.scoring import notes
from evaluation.scoring.collect import Features, collect
from evaluation.scoring.judges import notes_on, refuse_guide, refuse_own
from evaluation.scoring.scores import METRICS, NO_VECTORS, Evidence, Scores, Side, named, parse_metrics
from evaluation.sources.source import Source
from toolkit.data.feature_cache import FeatureCache
from toolkit.errors import UserError
from toolkit.launching.processes import Processes

FEWEST = 64
"""Below this the covariance term is noise; the same images give any value."""


class Setting(NamedTuple):
    """Where and how images are computed; of no concern to the metrics."""

    processes: Processes
    device: torch.device
    batch: int = 32
    seed: int = 0
    allow_few: bool = False
    cache: FeatureCache | None = None


class Evaluator:
    """Scores sources by `options.metrics` against `real`, which may be None where no metric needs it.

    All processes make one and call it with equal sources at the same points. Raises UserError, on all of them alike.
    """

    def __init__(self, options: MeasureOptions, real: Source | None, setting: Setting) -> None:
        self.options, self.real, self.setting = options, real, setting
        self.metrics = parse_metrics(options.metrics)
        lacking = [name for name in self.metrics if METRICS[name].real and real is None]
        if lacking:
            raise UserError(f"{', '.join(lacking)} compare with real images: give --real")
        if real is not None:
            self._check_count(real, "real")
            wanting = [name for name in self.metrics if METRICS[name].real_captions]
            if real.captions is None and wanting:
                needs = "needs" if len(wanting) == 1 else "need"
                raise UserError(f"{', '.join(wanting)} {needs} captions of the real images, and {real.name} has none")
        self._check_vectors(real)
        self.taps = {METRICS[name].tap for name in self.metrics}
        self.clip: ClipExtractor | None = None
        self.extractors: list[Extractor] = []
        self._reference: Side | None = None
        self._reference_read = False
        """On all processes alike; `_reference` itself is on the main one only."""

    def __call__(self, fake: Source, until: float | None = None) -> dict | None:
        """The report on the main process, None on the others. `until`: see `collect`."""
        main = self.setting.processes.main
        self._check_count(fake, "fake")
        refuse_own(fake.frozen_backbone, fake.identity if fake.guided else None, self.options)
        if fake.captions is None and (wanting := [n for n in self.metrics if METRICS[n].captions and n != "diversity"]):
            raise UserError(
                f"{', '.join(wanting)} need captions, and {fake.name} has no captions; put a .txt of the same stem "
                "beside every image"
            )
        self._check_vectors(fake)
        self.extractors = self.extractors or self.setting.processes.together(self._load)
        if self.clip is not None and fake.guided and fake.identity is not None:
            refuse_guide(self.metrics, fake.identity, self.clip)
        real = self._read_reference(until)
        features = collect(fake, self.extractors, self.setting.batch, self.setting.processes, until)
        return self.setting.processes.together(lambda: self._report(fake, real, features) if main else None)

    def _load(self) -> list[Extractor]:
        options, device = self.options, self.setting.device
        layers = [str(options.feature_layer)] if "inception" in self.taps else []
        layers += ["logits"] if "inception_logits" in self.taps else []
        found: list[Extractor] = []
        if layers:
            found.append(load_inception(tuple(layers), options.resize, options.weights, device))
        if "clip" in self.taps:
            self.clip = load_clip(options.clip_model, options.clip_pretrained, options.clip_weights, device)
            found.append(self.clip)
        if "dinov2" in self.taps:
            found.append(load_dinov2(options.dinov2_model, options.dinov2_weights, device))
        return found

    def _read_reference(self, until: float | None) -> Side | None:
        """Once: from the cache where it is, else computed. On the main process, None on the others."""
        if self.real is None or self._reference_read:
            return self._reference
        features = self._from_cache()
        lacking = [e for e in self.extractors if self.setting.processes.largest(not features.keys() >= set(e.taps))]
        if lacking:  # one decode for all of them, shared out over the processes
            computed = collect(self.real, lacking, self.setting.batch, self.setting.processes, until)
            self._to_cache(self.real, lacking, computed)
            features |= computed
        if self.setting.processes.main:
            self._reference = self._side(self.real, features)
        self._reference_read = True
        return self._reference

    def _from_cache(self) -> Features:
        """On the main process."""
        found: Features = {}
        if self.setting.processes.main and self.setting.cache is not None:
            for extractor in self.extractors:
                found |= self.setting.cache.load(self._fingerprint, extractor.key(), extractor.taps) or {}
        return found

    def _to_cache(self, real: Source, extractors: list[Extractor], features: Features) -> None:
        setting, fingerprint = self.setting, self._fingerprint
        if not setting.processes.main or setting.cache is None or real.fingerprint() != fingerprint:
            return  # the last: images were replaced meanwhile
        for extractor in extractors:
            kept = {tap: features[tap] for tap in extractor.taps}
            setting.cache.store(fingerprint, extractor.key(), kept)

    @cached_property
    def _fingerprint(self) -> str | None:
        """None where a network draws the reference; asked on the main process only, for it reads all images."""
        return self.real.fingerprint() if self.real is not None and self.setting.processes.main else None

    def _side(self, source: Source, features: Features) -> Side:
        """On the main process."""
        text, captions = None, source.captions
        if captions is not None and any(
            METRICS[name].captions and METRICS[name].tap == "clip" for name in self.metrics
        ):
            assert self.clip is not None  # loaded for the tap of these metrics
            text = self.clip.encode_texts([self.options.prefix + caption for caption in captions])
        wanted = any(METRICS[name].vectors for name in self.metrics)
        vectors = source.read_vectors() if source.read_vectors is not None and wanted else None
        return Side(features, captions, text, vectors=vectors)

    def _report(self, fake: Source, real: Side | None, features: Features) -> dict:
        of = Evidence(self.options, self.setting.seed, real, self._side(fake, features))
        scores, refused = self._scores(of)
        report = {
            "scores": scores,
            "protocol": self._protocol(fake, of),
            "notes": notes.of(self.real, fake, of, self.clip) + notes_on(fake, self.clip is not None) + refused,
        }
        report |= {"prompts": list(of.prompts.values())} if of.prompts else {}
        return report | ({"nearest": of.nearest} if of.nearest else {})

    def _scores(self, of: Evidence) -> tuple[Scores, list[str]]:
        """By name, and what was refused: one metric that wants more images does not cost the others theirs."""
        scores: Scores = {}
        refused: list[str] = []
        for name in self.metrics:
            metric = METRICS[name]
            try:
                found = metric.score(of)
            except UserError as error:
                if len(refused) + 1 == len(self.metrics):  # none is left
                    raise
                refused.append(f"no {name}: {error}")
                found = dict.fromkeys(metric.gives)
            scores |= {named(score, name, self.options): value for score, value in found.items()}
        return scores, refused

    def _protocol(self, fake: Source, of: Evidence) -> dict:
        """What a reader must know to make the numbers again, and to know which others compare."""
        real, setting = self.real, self.setting
        common: dict[str, object] = {
            "real": real.name if real else None,
            "real_fingerprint": self._fingerprint,
            "fake": fake.name,
            "n_real": real.count if real else None,
            "n_fake": fake.count,
            "resolution": f"{fake.width}x{fake.height}",
            "resolution_real": f"{real.width}x{real.height}" if real else None,
            "checkpoint": fake.name if fake.kind == "checkpoint" else None,
            "prompts": fake.prompts,
            "captions_sha256": captions_sha256(of.fake.captions),
            "seed": setting.seed,
            "batch": setting.batch,
            "metrics": of.details,
        }
        common |= {"truncation": fake.truncation} if fake.truncation != 1 else {}  # reports without it compare as ever
        for extractor in self.extractors:
            common[extractor.taps[0].split("_")[0]] = extractor.protocol()
        return common

    def _check_vectors(self, source: Source | None) -> None:
        """Before anything is computed; where other metrics are asked for as well, a note says what lacks."""
        if source is not None and source.read_vectors is None and all(METRICS[name].vectors for name in self.metrics):
            raise UserError(f"{NO_VECTORS}; {source.name} has none")

    def _check_count(self, source: Source, side: str) -> None:
        needed, remedy = 2 if self.setting.allow_few else FEWEST, "--allow_few: 2, for tests"
        if self.metrics == ["inception_score"]:
            needed, remedy = self.options.splits, "as many as splits; lower --splits or raise --count"
        elif not any(METRICS[name].real for name in self.metrics):
            needed = 1
        if source.count < needed:
            metrics = ", ".join(self.metrics)
            raise UserError(f"--{side} {source.name} has {source.count} images; {metrics} needs {needed} ({remedy})")


def captions_sha256(captions: list[str] | None) -> str | None:
    """Equal for equal lists of captions."""
    if captions is None:
        return None
    return hashlib.sha256("\0".join(captions).encode()).hexdigest()

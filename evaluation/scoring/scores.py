"""The metrics by name: what each needs, and the scores it gives from features and captions."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from evaluation.metrics import caption_probe, diversity, joint, neighbours, text_agreement, text_probe
from evaluation.metrics.fid_infinity import fid_infinity
from evaluation.metrics.frechet import Statistics, frechet_distance, statistics
from evaluation.metrics.inception_score import inception_score
from evaluation.metrics.kernel_distance import kernel_distance
from evaluation.metrics.ridge import Ridge
from evaluation.options import MeasureOptions
from evaluation.scoring.collect import Features
from evaluation.sources.source import Vectors
from toolkit.errors import UserError, nearest

Scores = dict[str, float | None]
NO_VECTORS = "text_probe needs the text vectors of both sides: --real a shard folder, --fake a checkpoint or shards"
PAIRS = 32
"""Most pairs of a sample and its nearest training image in a report."""


@dataclass
class Side:
    """Features of one source, and the captions of its images with CLIP's vectors where a metric asks for them."""

    features: Features
    captions: list[str] | None = None
    text: Tensor | None = None
    """float32 [N, E], one for each image."""
    probe: caption_probe.Probe | None = None
    """What the caption probe learned of this side; made once, as the statistics are."""
    vectors: Vectors | None = None
    """Of the captions, by the encoder that training knows them by; where a metric asks for them."""
    text_ridge: Ridge | None = None
    """What the text probe learned of this side."""
    text_left_out: text_agreement.Retrieval | None = None
    """How it reads this side's images left out."""
    _statistics: dict[str, Statistics] = field(default_factory=dict)

    @property
    def own_captions(self) -> list[str]:
        """For metrics that ask for the captions of this side: without them the evaluator does not score them."""
        assert self.captions is not None
        return self.captions

    def images_and_text(self) -> tuple[Tensor, Tensor]:
        """CLIP's vectors, for metrics of its tap that ask for the captions of this side."""
        assert self.text is not None
        return self.features["clip"], self.text

    def statistics(self, tap: str) -> Statistics:
        """Made once: the reference is compared with many a checkpoint."""
        if tap not in self._statistics:
            self._statistics[tap] = statistics(self.features[tap])
        return self._statistics[tap]


@dataclass
class Evidence:
    """All that a metric may look at; beside its scores it may fill tables and say how it was made."""

    options: MeasureOptions
    seed: int
    reference: Side | None
    """The real images, if there are any."""
    fake: Side
    prompts: dict[str, dict] = field(default_factory=dict)
    """By caption: what is known of its images."""
    nearest: list[dict] = field(default_factory=list)
    details: dict[str, dict] = field(default_factory=dict)
    """By metric: what belongs into the protocol."""

    @property
    def real(self) -> Side:
        """For metrics that compare with real images: without them the evaluator does not score them."""
        assert self.reference is not None
        return self.reference

    @property
    def tap(self) -> str:
        return f"inception_{self.options.feature_layer}"

    def tell(self, caption: str, **values: float | None) -> None:
        self.prompts.setdefault(caption, {"caption": caption}).update(values)


class Metric(NamedTuple):
    score: Callable[[Evidence], Scores]
    gives: tuple[str, ...]
    """Names of its scores, those of Inception features before `named`."""
    tap: str = "inception"
    """inception (the layer asked for), inception_logits, clip or dinov2."""
    real: bool = True
    captions: bool = False
    real_captions: bool = False
    vectors: bool = False
    """Of both sides' captions, by the encoder of training."""


def fid(of: Evidence) -> Scores:
    return {"fid": frechet_distance(of.real.statistics(of.tap), of.fake.statistics(of.tap))}


def clip_fd(of: Evidence) -> Scores:
    return {"clip_fd": frechet_distance(of.real.statistics("clip"), of.fake.statistics("clip"))}


def dinov2_fd(of: Evidence) -> Scores:
    return {"dinov2_fd": frechet_distance(of.real.statistics("dinov2"), of.fake.statistics("dinov2"))}


def extrapolated(of: Evidence) -> Scores:
    found = fid_infinity(of.real.statistics(of.tap), of.fake.features[of.tap], seed=of.seed)
    of.details["fid_infinity"] = {"points": [list(point) for point in found.points]}
    return {"fid_infinity": found.value, "fid_infinity_error": found.error}


def kid(of: Evidence) -> Scores:
    found = kernel_distance(of.fake.features[of.tap], of.real.features[of.tap])  # in torch-fidelity's order
    of.details["kid"] = {"subsets": found.subsets, "subset_size": found.subset_size, "interval": "95 %"}
    return {"kid": found.mean, "kid_std": found.std, "kid_low": found.low, "kid_high": found.high}


def inception(of: Evidence) -> Scores:
    mean, deviation = inception_score(of.fake.features["inception_logits"], of.options.splits)
    of.details["inception_score"] = {"splits": of.options.splits}
    return {"inception_score": mean, "inception_score_std": deviation}


def precision_recall(of: Evidence) -> Scores:
    return neighbours.manifolds(of.real.features[of.tap], of.fake.features[of.tap])._asdict()


def agreement(of: Evidence) -> Scores:
    (images, texts), captions = of.fake.images_and_text(), of.fake.own_captions
    of.details["clip_score"] = {"formulas": text_agreement.FORMULAS, "prefix": of.options.prefix}
    for caption, found in text_agreement.per_prompt(images, texts, captions).items():
        of.tell(caption, **found)
    shuffled = text_agreement.shuffled_clip_score(images, texts, captions, of.seed)
    return {**text_agreement.clip_score(images, texts)._asdict(), "clip_score_shuffled": shuffled}


def retrieval(of: Evidence) -> Scores:
    (images, texts), captions = of.fake.images_and_text(), of.fake.own_captions
    found = text_agreement.retrieval(images, texts, captions, seed=of.seed)
    if found is None:
        return dict.fromkeys(("r_precision", "r_precision_shuffled", "median_rank"))
    of.details["retrieval"] = {"distractors": found.distractors}
    for caption, told in text_agreement.per_prompt(images, texts, captions, found.ranks).items():
        of.tell(caption, **told)
    order = text_agreement.shuffled_order(captions, of.seed)
    assert order is not None  # captions differ, or nothing would have been found
    control = text_agreement.retrieval(images, texts[order], [captions[i] for i in order], seed=of.seed)
    shuffled = control.r_precision if control else None
    return {"r_precision": found.r_precision, "r_precision_shuffled": shuffled, "median_rank": found.median_rank}


def within_prompts(of: Evidence) -> Scores:
    found: Scores = {}
    for name, side in (("diversity", of.fake), ("diversity_real", of.reference)):
        if side is not None and side.captions is not None:
            by_prompt = diversity.within_prompts(side.features[of.tap], side.captions)
            found[name] = diversity.mean_diversity(by_prompt)
            counts = Counter(side.captions)
            if side is of.fake:
                for caption, distance in by_prompt.items():
                    of.tell(caption, count=counts[caption], diversity=distance)
    return found


def probe(of: Evidence) -> Scores:
    tap, real, captions = of.tap, of.real, of.fake.own_captions
    if real.probe is None:
        real.probe = caption_probe.fit(real.features[tap], real.own_captions)
    found = caption_probe.hits(real.probe, of.fake.features[tap], captions).double()
    of.details["probe"] = {"captions": len(real.probe.captions), "ridge_strength": real.probe.strength}
    for caption, rows in text_agreement.rows_by_caption(captions).items():
        of.tell(caption, count=len(rows), probe_accuracy=float(found[rows].mean()))
    return {"probe_accuracy": float(found.mean()), "probe_accuracy_real": real.probe.accuracy}


def text_reader(of: Evidence) -> Scores:
    real, fake = of.real, of.fake
    if real.vectors is None or fake.vectors is None:
        raise UserError(NO_VECTORS)
    if other := real.vectors.encoder.difference(fake.vectors.encoder):
        raise UserError(f"the captions of both sides were embedded by different encoders: {other}")
    if real.text_ridge is None:
        real.text_ridge = text_probe.fit(real.features[of.tap], real.vectors.values)
    features, texts, captions = fake.features[of.tap], fake.vectors.values, fake.own_captions
    found = text_probe.judge(real.text_ridge, features, texts, captions, seed=of.seed)
    if found is None:
        return dict.fromkeys(METRICS["text_probe"].gives)
    order = text_agreement.shuffled_order(captions, of.seed)
    assert order is not None  # captions differ, or nothing would have been found
    control = text_probe.judge(real.text_ridge, features, texts[order], [captions[i] for i in order], seed=of.seed)
    assert control is not None  # it has the captions that something was found among
    left_out = _real_left_out(real, real.text_ridge, real.vectors.values, found.distractors, of.seed)
    of.details["text_probe"] = {
        "candidates": 1 + found.distractors,
        "ridge_strength": real.text_ridge.strength,
        "encoder": real.vectors.encoder.name,
    }
    for caption, rows in text_agreement.rows_by_caption(captions).items():
        of.tell(caption, count=len(rows), text_rank=float(found.ranks[rows].quantile(0.5)))
    known = found.distractors >= text_probe.PLACES  # else the own caption is among the nearest ten whatever is drawn
    return {
        "text_top10": found.top(text_probe.PLACES) if known else None,
        "text_top1": found.top(1),
        "text_median_rank": found.median_rank,
        "text_top10_shuffled": control.top(text_probe.PLACES) if known else None,
        "text_top10_real": left_out.top(text_probe.PLACES) if known and left_out else None,
    }


def _real_left_out(
    real: Side, reader: Ridge, texts: Tensor, distractors: int, seed: int
) -> text_agreement.Retrieval | None:
    """Made once, as long as the drawn side has as many captions; None where the real one has fewer."""
    if real.text_left_out is None or real.text_left_out.distractors != distractors:
        real.text_left_out = text_probe.judge_left_out(reader, texts, real.own_captions, distractors, seed)
    found = real.text_left_out
    return found if found is not None and found.distractors == distractors else None


def vendi(of: Evidence) -> Scores:
    sides = {"vendi": of.fake} | ({"vendi_real": of.reference} if of.reference else {})
    return {name: diversity.vendi_score(side.features[of.tap]) for name, side in sides.items()}


def joint_fd(of: Evidence) -> Scores:
    return {"joint_fd": joint.joint_frechet_distance(*of.real.images_and_text(), *of.fake.images_and_text())}


def memorisation(of: Evidence) -> Scores:
    real, fake = of.real.features[of.tap], of.fake.features[of.tap]
    distances, found = (column[:, 0] for column in neighbours.nearest(fake, real)[:2])
    for i in distances.argsort(stable=True)[:PAIRS].tolist():
        j = int(found[i])
        pair = {"sample": i, "training": j, "distance": float(distances[i])}
        for name, side, number in (("caption", of.fake, i), ("training_caption", of.real, j)):
            pair |= {name: side.captions[number]} if side.captions else {}
        of.nearest.append(pair)
    authentic = neighbours.authenticity(real, fake)
    return {"authenticity": authentic, "nearest_distance": float(distances.double().mean())}


METRICS = {
    "fid": Metric(fid, ("fid",)),
    "fid_infinity": Metric(extrapolated, ("fid_infinity", "fid_infinity_error")),
    "kid": Metric(kid, ("kid", "kid_std", "kid_low", "kid_high")),
    "inception_score": Metric(inception, ("inception_score", "inception_score_std"), "inception_logits", real=False),
    "precision_recall": Metric(precision_recall, ("precision", "recall", "density", "coverage")),
    "clip_fd": Metric(clip_fd, ("clip_fd",), "clip"),
    "dinov2_fd": Metric(dinov2_fd, ("dinov2_fd",), "dinov2"),
    "clip_score": Metric(agreement, ("clip_score", "clip_score_hessel", "mean_cosine", "clip_score_shuffled"), "clip",
                         real=False, captions=True),
    "retrieval": Metric(retrieval, ("r_precision", "r_precision_shuffled", "median_rank"), "clip", real=False,
                        captions=True),
    "diversity": Metric(within_prompts, ("diversity", "diversity_real"), real=False, captions=True),
    "probe": Metric(probe, ("probe_accuracy", "probe_accuracy_real"), captions=True, real_captions=True),
    "text_probe": Metric(text_reader, ("text_top10", "text_top1", "text_median_rank", "text_top10_shuffled",
                                       "text_top10_real"), captions=True, real_captions=True, vectors=True),
    "vendi": Metric(vendi, ("vendi", "vendi_real"), real=False),
    "joint_fd": Metric(joint_fd, ("joint_fd",), "clip", captions=True, real_captions=True),
    "memorisation": Metric(memorisation, ("authenticity", "nearest_distance")),
}  # fmt: skip


def parse_metrics(text: str) -> list[str]:
    """'fid,kid' -> their names in METRICS; 'all': all but dinov2_fd, whose weights are 1.2 GB. Raises UserError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return [name for name in METRICS if name != "dinov2_fd"]
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown metric '{name}'{nearest(name, METRICS)}; there are {', '.join(METRICS)}")
    if not names:
        raise UserError(f"no metrics: give some of {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


def metric_giving(score: str, others: tuple[str, ...] = ()) -> str:
    """'recall' -> 'precision_recall'. Raises UserError for one that no metric gives; `others` are valid as well."""
    for name, metric in METRICS.items():
        if score in metric.gives:
            return name
    known = [*others, *(score for metric in METRICS.values() for score in metric.gives)]
    raise UserError(f"unknown score '{score}'{nearest(score, known)}; it is one of {', '.join(known)}")


def named(score: str, metric: str, options: MeasureOptions) -> str:
    """A score's name in reports: those of other layers and resizes carry them, for their numbers do not compare."""
    if METRICS[metric].tap != "inception":
        return score
    prefix = "" if options.resize == "legacy" else f"{options.resize}_"
    suffix = "" if options.feature_layer == 2048 else f"_{options.feature_layer}"
    return f"{prefix}{score}{suffix}"

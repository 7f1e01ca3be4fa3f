"""Networks that a generator was trained to please are no judges of its images.

Features that the discriminator sees, or a loss, get better scores without better images (Kynkäänniemi et al. 2022,
arXiv 2203.06026, on ImageNet features and FID). The score by the very network is refused, that by its kin gets a note.
"""

from evaluation.options import MeasureOptions
from evaluation.scoring.scores import METRICS, parse_metrics
from evaluation.sources.source import Source
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError


def refuse_own(backbone: str, guide: EncoderIdentity | None, options: MeasureOptions, told: str = "") -> None:
    """UserError if a metric's network is `backbone` (a config's `frozen_backbone`) or of the name of `guide`, the CLIP
    that was in G's loss. `told`: a remedy to add.

    By name. The same weights under another one are `refuse_guide`'s concern, and the user's.
    """
    metrics = parse_metrics(options.metrics)
    clip = f"{options.clip_model}/{options.clip_pretrained}"
    by_clip, by_dinov2 = (_of_tap(metrics, tap) for tap in ("clip", "dinov2"))
    if by_clip and backbone.startswith("open_clip/") and _same_clip(backbone.removeprefix("open_clip/"), clip):
        raise _refused(by_clip, f"{clip}, on whose features its discriminator was", "clip_model", told)
    if by_clip and guide is not None and _same_clip(guide.name, clip):
        raise _refused(by_clip, f"{clip}, which was in its loss (clip_guidance) as it was", "clip_model", told)
    if by_dinov2 and backbone.startswith("timm/") and _same_timm(backbone.removeprefix("timm/"), options.dinov2_model):
        which = f"{options.dinov2_model}, on whose features its discriminator was"
        raise _refused(by_dinov2, which, "dinov2_model", told)


def refuse_guide(metrics: list[str], guide: EncoderIdentity, clip) -> None:
    """The same for a loaded CLIP (a ClipExtractor) whatever its name, by the vectors it gives."""
    if clip.is_encoder(guide):
        which = f"{clip.model}/{clip.pretrained}, which as {guide.name} was in its loss (clip_guidance) as it was"
        raise _refused(_of_tap(metrics, "clip"), which, "clip_model", "")


def notes_on(fake: Source, by_clip: bool) -> list[str]:
    """What stands beside the scores of a generator that was trained against pretrained networks."""
    found = []
    if fake.frozen_backbone:
        found.append(
            f"the discriminator saw features of {fake.frozen_backbone}: scores by related networks (same training data "
            "or task) flatter this generator; compare it with others of the same backbone"
        )
    if fake.guided and by_clip:
        found.append("CLIP was in this generator's loss: the scores of every CLIP flatter it")
    return found


def _of_tap(metrics: list[str], tap: str) -> list[str]:
    return [name for name in metrics if METRICS[name].tap == tap]


def _same_clip(a: str, b: str) -> bool:
    """open_clip's '-quickgelu' names are for the same weights."""
    return a.replace("-quickgelu", "") == b.replace("-quickgelu", "")


def _same_timm(a: str, b: str) -> bool:
    """'NAME' without a tag means that of timm's default."""
    (name, _, tag), (other, _, other_tag) = a.partition("."), b.partition(".")
    return name == other and (tag == other_tag or not (tag and other_tag))


def _refused(metrics: list[str], which: str, option: str, told: str) -> UserError:
    remedy = told or f"name another network (--{option}) or leave them out of --metrics"
    return UserError(
        f"{', '.join(metrics)} would be by {which} trained: no judge of this generator's images "
        f"(docs/reading_scores.md); {remedy}"
    )

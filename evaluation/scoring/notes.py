"""What a reader of the numbers must be told beside them."""

from evaluation.extractors.clip_images import ClipExtractor
from evaluation.metrics import text_probe
from evaluation.scoring.scores import Evidence
from evaluation.sources.source import Source

UNBIASED_FROM = 10_000
CUSTOMARY_COUNT = 50_000
"""Images behind published Inception Scores."""
CUSTOMARY_CANDIDATES = 100
"""Captions that each image of text_probe chooses from."""
COLLAPSED = 0.1
"""Share of the real images' variance below which the fake ones are called collapsed."""


def of(real: Source | None, fake: Source, evidence: Evidence, clip: ClipExtractor | None) -> list[str]:
    found = []
    if real is not None:
        found += _of_counts(real, fake, evidence)
        found += _of_sizes(real, fake)
        if (real.name, real.kind) == (fake.name, fake.kind):
            found.append("both sides are the same source")
    if "inception_logits" in evidence.fake.features and fake.count < CUSTOMARY_COUNT:
        found.append(
            f"Inception Score biased low: N < {CUSTOMARY_COUNT:,} ({fake.count:,}); compare only with values at equal N"
        )
    found += _of_collapse(evidence)
    if fake.truncation != 1:
        found.append(f"truncated: noise x {fake.truncation:g}; compare only with values of equal truncation")
    found += _of_candidates(evidence)
    if clip is not None and fake.identity is not None and clip.is_encoder(fake.identity):
        found.append("self-serving: this CLIP also conditions the generator; score with another one")
    return found


def _of_counts(real: Source, fake: Source, evidence: Evidence) -> list[str]:
    found, fewest = [], min(real.count, fake.count)
    if fewest < UNBIASED_FROM:
        found.append(f"biased: N < {UNBIASED_FROM:,} ({fewest:,}); compare FID only with values at equal N, or use KID")
    for tap in evidence.fake.features:
        width = evidence.fake.features[tap].shape[1]
        if tap != "inception_logits" and fewest <= width:
            found.append(f"rank-deficient covariance: {fewest:,} images for {width} features ({tap})")
    if real.count != fake.count:
        found.append(f"unequal N: {real.count:,} real, {fake.count:,} fake")
    return found


def _of_sizes(real: Source, fake: Source) -> list[str]:
    if (real.width, real.height) == (fake.width, fake.height):
        return []
    return [
        f"unequal sizes: real {real.width}x{real.height}, fake {fake.width}x{fake.height}; the distance includes that "
        "of the resizing (--size brings both to one)"
    ]


def _of_candidates(evidence: Evidence) -> list[str]:
    candidates = evidence.details.get("text_probe", {}).get("candidates", CUSTOMARY_CANDIDATES)
    if candidates >= CUSTOMARY_CANDIDATES:
        return []
    places = text_probe.PLACES
    chance = f"chance {places / candidates:.0%}" if candidates > places else "text_top10 would be 100 % for anything"
    return [f"text_probe: {candidates} different captions to choose from instead of {CUSTOMARY_CANDIDATES}, {chance}"]


def _of_collapse(evidence: Evidence) -> list[str]:
    """A generator that draws one image, or one a prompt, has finite scores: somebody must say it."""
    found: list[str] = []
    tap, real, fake = evidence.tap, evidence.reference, evidence.fake
    if real is None or tap not in fake.features:
        return found
    if fake.statistics(tap).covariance.trace() < COLLAPSED * real.statistics(tap).covariance.trace():
        found.append("the fake images hardly differ from each other (feature variance < 10 % of real): collapsed?")
    alike = [one["caption"] for one in evidence.prompts.values() if one.get("diversity") == 0]
    if alike:
        found.append(f"all images of a prompt are equal for {len(alike):,} prompts, e.g. {alike[0][:80]!r}")
    return found

"""What the name of a score says: which number it is, on which features, and which way is better."""

import re
from typing import Literal, NamedTuple

PREFIXES = {"clean_": "clean-fid's resize", "pytorch_": "pytorch-fid's resize"}
"""Of scores whose images came to Inception's size in another way than torch-fidelity's."""
TITLES = {
    "fid": "FID",
    "fid_infinity": "FID extrapolated to infinitely many images",
    "kid": "KID",
    "clip_fd": "Fréchet distance on CLIP features",
    "dinov2_fd": "Fréchet distance on DINOv2 features",
    "inception_score": "Inception Score",
    "precision": "precision: drawn images that look real",
    "density": "density: how deep among the real ones they lie",
    "recall": "recall: real images that could be drawn",
    "coverage": "coverage: real images with a drawn one near",
    "clip_score": "CLIP score",
    "clip_score_hessel": "CLIP score as in Hessel et al.",
    "mean_cosine": "mean cosine of image and text",
    "r_precision": "R-precision: own caption ranked first",
    "median_rank": "median rank of the own caption",
    "probe_accuracy": "probe accuracy: images a reader taught on real ones gives their caption",
    "text_top10": "own caption among the 10 of 100 nearest to what a reader taught on real images sees",
    "text_top1": "own caption the nearest of 100 to what that reader sees",
    "text_median_rank": "median rank of the own caption by that reader",
    "joint_fd": "Fréchet joint distance of images and text",
    "diversity": "diversity of the images of a prompt",
    "vendi": "Vendi score: effective number of images",
    "authenticity": "authenticity: images that are no copies",
    "nearest_distance": "distance to the nearest training image",
}
"""Every score that a table shows a row for, in the table's order."""
LOWER = re.compile(r"fid|kid|_fd$|median_rank$")
UNCERTAINTY = ("kid_std", "kid_low", "kid_high", "fid_infinity_error", "inception_score_std")
"""How sure another score is; shown beside it."""
CONTROLS = {
    "clip_score": {"clip_score_shuffled": "shuffled captions"},
    "r_precision": {"r_precision_shuffled": "shuffled captions"},
    "probe_accuracy": {"probe_accuracy_real": "real images, each left out"},
    "text_top10": {"text_top10_shuffled": "shuffled captions", "text_top10_real": "real images, each left out"},
    "diversity": {"diversity_real": "real images"},
    "vendi": {"vendi_real": "real images"},
}
"""What a score is read against: names, and what each was measured on."""


class ScoreName(NamedTuple):
    """`clean_kid_low_768` taken apart."""

    prefix: str  # one of PREFIXES, or ""
    stem: str  # "kid_low"
    layer: str  # "768"; "" for the last one

    def sibling(self, stem: str) -> str:
        """The name of `stem` on the same features: kid_768 -> kid_low_768."""
        return self.prefix + stem + (f"_{self.layer}" if self.layer else "")

    @property
    def lower_is_better(self) -> bool:
        return bool(LOWER.search(self.stem))

    @property
    def is_auxiliary(self) -> bool:
        """Whether it tells of another score instead of the images."""
        return self.stem in UNCERTAINTY or any(self.stem in controls for controls in CONTROLS.values())

    @property
    def title(self) -> str:
        """In words; of a name that is not known the name itself."""
        title = TITLES.get(self.stem, self.stem.replace("_", " "))
        on = [f"layer {self.layer}"] if self.layer else []
        on += [PREFIXES[self.prefix]] if self.prefix else []
        return f"{title} ({', '.join(on)})" if on else title


def parse(name: str) -> ScoreName:
    """Any name; one that is not known is all stem."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    stem, _, layer = name.removeprefix(prefix).rpartition("_")
    if layer in ("64", "192", "768", "2048") and stem:
        return ScoreName(prefix, stem, layer)
    return ScoreName(prefix, name.removeprefix(prefix), "")


def in_order(names: set[str]) -> list[str]:
    """Those a table has a row for: known ones by topic, then the rest by name."""
    known = list(TITLES)
    rows = [(name, parse(name)) for name in names]
    shown = [(name, parsed) for name, parsed in rows if not parsed.is_auxiliary]
    place = {name: known.index(parsed.stem) if parsed.stem in known else len(known) for name, parsed in shown}
    return sorted(place, key=lambda name: (place[name], name))


def interval(name: str, scores: dict[str, float]) -> tuple[float, float] | None:
    """The 95 % interval that the same report gives for `name`: of what its finite number of images leaves open."""
    parsed = parse(name)
    low, high = (scores.get(parsed.sibling(f"{parsed.stem}_{end}")) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def spread(name: str, scores: dict[str, float]) -> tuple[float, Literal["±", "over splits ±"]] | None:
    """A standard error (±), or the standard deviation over the splits of an Inception Score."""
    parsed = parse(name)
    signs: tuple[tuple[str, Literal["±", "over splits ±"]], ...] = (("error", "±"), ("std", "over splits ±"))
    for suffix, sign in signs:
        value = scores.get(parsed.sibling(f"{parsed.stem}_{suffix}"))
        if value is not None and parsed.stem != "kid":  # its std is of the subsets, which overlap
            return value, sign
    return None

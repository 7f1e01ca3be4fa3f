"""Signs of health: the rules that `monitor.py` lays on each line of the training log.

| finding        | condition                                                                      | try               |
|----------------|--------------------------------------------------------------------------------|-------------------|
| diverged       | not finite, or a loss or mean logit beyond watch_diverged                      | (on_divergence)   |
| loss_scale     | fp16 loss scale below watch_scale, or a quarter of the steps skipped; < 1: end | bf16, lr down     |
| spike          | a step's loss above watch_spike (note); in 3 of 5 lines, or a line's mean;     | grad_clip, lr down|
|                | relativistic: and above twice G's median loss of 5 lines                       |                   |
| d_winning      | D's loss below watch_loss_low, or the gap real - fake and G's loss both large  | lr_d down, R1 up  |
| g_winning      | generated images rated above real ones, by the median of 5 lines             | lr_g down, lr_d up|
| d_blind        | D's loss as if all logits were equal and the gap about 0, by the same median   | lr_d up, R1 down  |
| caption_unread | D's caption loss within 3 % of what a blind D has, by the same median          | match_weight up   |
| d_overfits     | mean sign of D on real images above 0.9, of relativistic pairs above 0.8, by   | adaptive_augment  |
|                | the same median (note)                                                         |                   |
| extreme_logits | a mean logit beyond watch_logit                                                | R1 up             |
| gradient_jump  | a gradient norm above watch_norm times its median                              | grad_clip, lr down|
| gradient_grows | a gradient norm 8 times what it was, and still growing (note)                  | grad_clip, lr down|
| gradient_gone  | a gradient norm of about 0 in 5 lines                                          | lr, checkpoint    |
| collapse       | diversity below watch_diversity                                                | lr_g down, R1 up  |
| one_layout     | same_layout above 0.5 (note) or 0.75                                           | pairs             |
| text_ignored   | text_sensitivity below watch_text                                              | mismatch_weight up|
| loss_range     | a loss outside its range in SCALES, by the median of 5 lines (note)            | patience          |

Unless marked, a finding is a warning. g_winning, d_blind, caption_unread, d_overfits, collapse, one_layout,
text_ignored and loss_range wait for step watch_after: at first D tells nothing apart and all images look alike. Of a
relativistic GAN only differences of logits count: nothing holds their common level.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

WINDOW = 5
"""Lines whose median counts where one line says little: losses of a GAN oscillate."""
LOSSES, LOGITS = ("loss_d", "loss_g", "loss_mismatch"), ("logit_real", "logit_fake", "logit_mismatched")
NORMS = {"grad_norm_d": "D", "grad_norm_g": "G"}
BLIND_CAPTIONS = {"hinge": 1.0, "nonsaturating": math.log(2), "relativistic": math.log(2)}
"""The mismatch loss of a D that gives all captions one logit (networks/losses.py)."""
READS = 0.97
"""Share of the blind loss from which D is taken to read. On ten dishes the mismatch loss was 0.70 and 0.69 while a
reader found the dish in 0.21 of the images, and 0.66 when it found it in 0.59; ln 2 is 0.693."""
PAIRS_WON, OVERFITS = 0.8, 0.9
"""Mean sign from which D knows the real images: 0.8 is 90 % of relativistic pairs. On 300 photos D won 79 % of them
while FID fell, and 96 % when it had turned (docs/recipe.md)."""
GONE, GROWN = 1e-7, 8.0
"""A gradient norm that counts as none; and how many times an earlier one is growth."""
LAYOUTS = (0.5, 0.75)
"""Correlation of luminance between images of one caption, of a note and of a warning. Photos of one dish: 0.04; a G
that draws each caption in one layout with other colours: 0.59 and more."""
FINITE = (*LOSSES, "loss_d_max", "loss_g_max", *LOGITS, *NORMS, "loss_scale", "r1", "r2", "r1_frozen", "lecam",
          "feature_matching", "perceptual", "clip_distance")  # fmt: skip
"""What must be finite. A score or a probe that is not says something of the samples, not of the training."""


class Finding(NamedTuple):
    """What a rule has to say."""

    name: str
    level: Literal["note", "warning", "action"]
    text: str  # one plain sentence: the numbers, and which flags to try
    action: Literal["", "rollback", "stop", "lower_d_steps"] = ""


class Scale(NamedTuple):
    """The numbers of one adversarial loss (networks/losses.py; D's is summed over real and generated)."""

    blind: float  # D's loss where all logits are equal: 2 max(0, 1), 2 softplus(0), softplus(0)
    d: tuple[float, float]  # D's usual range, up to `blind`
    g: tuple[float, float]  # G's. Hinge: minus the mean logit of its images, which a healthy D keeps from -1.5 to 0
    gap: float  # real minus generated logit from which D is sure: hinge, twice its margin; else 98 % of each image
    far: float  # G's loss above which, with such a gap, it is left behind


SCALES = {
    "hinge": Scale(2.0, (1.0, 2.0), (0.0, 1.5), gap=4, far=2.5),
    "nonsaturating": Scale(2 * math.log(2), (0.5, 2 * math.log(2)), (0.5, 3.0), gap=8, far=4),
    "relativistic": Scale(math.log(2), (0.2, math.log(2)), (0.5, 4.0), gap=4, far=4),
}


class Reading(NamedTuple):
    """A log line with what a rule needs to judge it."""

    line: dict  # its finite numbers
    recent: list[dict]  # the lines before it that still count, oldest first
    options: Any  # WatchOptions of monitor.py
    loss: str
    scale: Scale  # of that loss
    settled: bool  # whether step watch_after is reached

    def median(self, name: str) -> float | None:
        """Median over this line and the WINDOW - 1 before; None in a settling run or with fewer values."""
        values = [line[name] for line in [*self.recent[1 - WINDOW :], self.line] if name in line]
        return statistics.median(values) if self.settled and len(values) == WINDOW else None

    def gap(self) -> float | None:
        """Median of real minus generated logit, None as for `median`."""
        real, fake = self.median("logit_real"), self.median("logit_fake")
        return None if real is None or fake is None else real - fake


def diverged(raw: dict, line: dict, options: Any, loss: str) -> Finding | None:
    """Judges the raw line, which may hold what is not finite, and its finite part `line`."""
    bad = [f"{name} {raw[name]}" for name in FINITE if isinstance(raw.get(name), float) and name not in line]
    sizes = {name: line[name] for name in LOSSES if name in line} | levels(line, loss)
    bad += [f"{name} {value:.3g}" for name, value in sizes.items() if abs(value) > options.watch_diverged]
    if not bad:
        return None
    advice = "try lower --lr_g and --lr_d, --grad_clip 1, or a higher --r1_penalty"
    text = f"training has diverged: {', '.join(bad)} at step {line['step']:,}; {advice}"
    return Finding("diverged", "action", text, options.on_divergence)


def levels(line: dict, loss: str) -> dict[str, float]:
    """The mean logits; of a relativistic GAN their differences."""
    logits = {name: line[name] for name in LOGITS if name in line}
    if loss != "relativistic":
        return logits
    real = logits.pop("logit_real", None)
    return {} if real is None else {f"logit_real - {name}": real - value for name, value in logits.items()}


def _loss_scale(now: Reading) -> Finding | None:
    scale, skipped = now.line["loss_scale"], now.line.get("skipped", 0)
    if scale >= now.options.watch_scale and skipped <= 0.25:
        return None
    advice = "try --mixed_precision bf16 or no, or lower --lr_g and --lr_d"
    text = f"fp16 gradients overflow: loss scale {scale:.3g}, {skipped:.0%} of the steps skipped; {advice}"
    return Finding("loss_scale", "action", text, "stop") if scale < 1 else _warning("loss_scale", text)


def _spike_limit(now: Reading) -> float:
    """watch_spike; of a relativistic GAN twice G's usual loss if that is more. G's loss there is about the gap between
    the logits, which a D that stays ahead holds at 3 or 4 while the images get better (measured: docs/recipe.md, a
    caption for every image)."""
    usual = [line["loss_g"] for line in now.recent[-WINDOW:] if "loss_g" in line]
    steady = now.loss == "relativistic" and len(usual) == WINDOW
    return max(now.options.watch_spike, 2 * statistics.median(usual)) if steady else now.options.watch_spike


def _spike(now: Reading) -> Finding | None:
    def largest(line: dict, *suffixes: str) -> float:
        return max(line.get(f"loss_{network}{suffix}", -math.inf) for network in "dg" for suffix in suffixes)

    limit, peak = _spike_limit(now), largest(now.line, "", "_max")
    if peak <= limit:
        return None
    if not now.recent:
        return Finding("spike", "note", f"a loss was {peak:.3g} in the first steps, before D had found its level")
    spikes = sum(largest(line, "", "_max") > limit for line in [*now.recent[1 - WINDOW :], now.line])
    if spikes >= 3 or largest(now.line, "") > limit:
        advice = "try --grad_clip 1, or lower --lr_g and --lr_d"
        return _warning("spike", f"losses spike again and again, now up to {peak:.3g}; {advice}")
    return Finding("spike", "note", f"a loss went up to {peak:.3g} and came back; if that goes on try --grad_clip 1")


def _d_winning(now: Reading) -> Finding | None:
    line, scale = now.line, now.scale
    gap = line.get("logit_real", math.nan) - line.get("logit_fake", math.nan)
    wide = gap > scale.gap and line.get("loss_g", 0) > scale.far and line["loss_d"] < scale.blind
    if line["loss_d"] >= now.options.watch_loss_low and not wide:
        return None
    fewer = ", fewer --d_steps" if line.get("d_steps", 1) > 1 else ""
    advice = f"try a lower --lr_d, a higher --r1_penalty, --adaptive_augment{fewer}"
    logits = "" if math.isnan(gap) else f" (logits {line['logit_real']:.3g} real, {line['logit_fake']:.3g} generated)"
    return _warning("d_winning", f"D is winning: its loss is {line['loss_d']:.3g}{logits}, G learns little; {advice}")


def _g_winning(now: Reading) -> Finding | None:
    gap = now.gap()
    if gap is not None and gap < -0.25:
        advice = "try a lower --lr_g, a higher --lr_d, or --d_steps 2"
        return _warning("g_winning", f"G is winning: D rates its images {-gap:.3g} above real ones; {advice}")
    return None


def _d_blind(now: Reading) -> Finding | None:
    gap, loss = now.gap(), now.median("loss_d")
    if gap is None or loss is None or abs(gap) > 0.05 or loss < 0.975 * now.scale.blind:
        return None
    augmented = ", less augmentation (--augment_p)" if now.line.get("augment_p", 0) > 0.5 else ""
    advice = f"try a higher --lr_d, --d_steps 2, a lower --r1_penalty{augmented}"
    return _warning("d_blind", f"D tells nothing apart: loss {loss:.3g}, logits {gap:+.2g} apart; {advice}")


def _caption_unread(now: Reading) -> Finding | None:
    if "match_blind" in now.line:  # a head of its own: what it reads, D has read
        what, loss, blind = "the matching loss", now.median("loss_match"), now.line["match_blind"]
    else:
        what, loss, blind = "the mismatch loss", now.median("loss_mismatch"), BLIND_CAPTIONS[now.loss]
    if loss is None or now.line.get("text_share", 1) < 1 or not READS * blind <= loss <= 1.5 * blind:
        return None
    advice = "try a higher --match_weight, and check the captions with python -m shards.inspect"
    text = f"D does not read the captions: {what} is {loss:.3g}, of a blind D {blind:.3g}; {advice}"
    return _warning("caption_unread", text)


def _d_overfits(now: Reading) -> Finding | None:
    sign, pairs = now.median("real_sign"), now.loss == "relativistic"
    if sign is None or sign <= (PAIRS_WON if pairs else OVERFITS):
        return None
    if pairs:
        advice = "no harm while scores get better, else try --adaptive_augment or more images"
        return Finding("d_overfits", "note", f"D wins {(1 + sign) / 2:.0%} of its pairs; {advice}")
    full = now.line.get("augment_p", 0) > 0.95
    advice = "try more images, or a higher --r1_penalty" if full else "try --adaptive_augment, or a higher --augment_p"
    return Finding("d_overfits", "note", f"D knows the real images by heart: mean sign {sign:.2f}; {advice}")


def _extreme_logits(now: Reading) -> Finding | None:
    far = {name: value for name, value in levels(now.line, now.loss).items() if abs(value) > now.options.watch_logit}
    if far:
        named = ", ".join(f"{name} {value:.3g}" for name, value in far.items())
        # LeCam costs with the relativistic loss: FID 1.52 for 0.86, and D went blind (docs/recipe.md).
        advice = f"try a higher --r1_penalty{'' if now.loss == 'relativistic' else ', --lecam 0.1'}, or a lower --lr_d"
        return _warning("extreme_logits", f"D's verdicts are extreme: {named}; {advice}")
    return None


def _gradient_jump(now: Reading) -> Finding | None:
    for name, network in NORMS.items():
        before, norm = [line[name] for line in now.recent if name in line], now.line.get(name, 0)
        usual = statistics.median(before) if len(before) >= WINDOW else math.inf
        if norm > now.options.watch_norm * usual > 0:
            advice = "try --grad_clip 1, or lower --lr_g and --lr_d"
            return _warning("gradient_jump", f"{network}'s gradient norm is {norm:.3g}, usually {usual:.3g}; {advice}")
    return None


def _gradient_gone(now: Reading) -> Finding | None:
    for name, network in NORMS.items():
        last = [line.get(name) for line in [*now.recent[1 - WINDOW :], now.line]]
        if len(last) == WINDOW and all(norm is not None and norm < GONE for norm in last):
            advice = "go back to an earlier checkpoint, with lower --lr_g and --lr_d"
            return _warning("gradient_gone", f"{network} learns nothing: its gradient norm is {last[-1]:.2g}; {advice}")
    return None


def _gradient_grows(now: Reading) -> Finding | None:
    """Doubling again and again: a median of the last lines follows it and sees no jump."""
    for name, network in NORMS.items():
        norms = [line[name] for line in [*now.recent, now.line] if name in line]
        quarter = len(norms) // 4
        if quarter < WINDOW:
            continue
        parts = [statistics.median(norms[i * quarter : (i + 1) * quarter]) for i in range(3)]
        parts.append(statistics.median(norms[-WINDOW:]))
        first = statistics.median(norms[:WINDOW])
        if first > 0 and parts[3] > GROWN * first and all(b > 1.2 * a for a, b in zip(parts, parts[1:], strict=False)):
            advice = "try --grad_clip 1, a higher --r1_penalty, or lower --lr_g and --lr_d"
            text = f"{network}'s gradient norm grows and grows, from {first:.3g} to {parts[3]:.3g}; {advice}"
            return Finding("gradient_grows", "note", text)
    return None


def _one_layout(now: Reading) -> Finding | None:
    value, (note, warning) = now.line["same_layout"], LAYOUTS
    if not now.settled or value <= note:
        return None
    what = f"images of one prompt have one layout, whatever the noise: their luminance correlates by {value:.2f}"
    advice = "try --pairs, and --match_weight in place of --mismatch_weight"
    return Finding("one_layout", "warning" if value > warning else "note", f"{what}; {advice}")


def _collapse(now: Reading) -> Finding | None:
    value, options = now.line["diversity"], now.options
    if not now.settled or value >= options.watch_diversity:
        return None
    advice = "go back to an earlier checkpoint, or try a lower --lr_g, a higher --r1_penalty, a larger --batch"
    still = now.line.get("text_sensitivity", 0) >= options.watch_text
    what = "images of one prompt look alike, whatever the noise" + (" (prompts still differ)" if still else "")
    text = f"{what}: {value:.0%} of what real ones differ by; {advice}"
    return Finding("collapse", "action", text, "stop") if options.on_collapse == "stop" else _warning("collapse", text)


def _text_ignored(now: Reading) -> Finding | None:
    value = now.line["text_sensitivity"]
    if now.settled and value < now.options.watch_text:
        what = f"the text changes the images by only {value:.0%} of what real ones differ by"
        advice = "try a higher --mismatch_weight, and check the captions with python -m shards.inspect"
        return _warning("text_ignored", f"G ignores the text: {what}; {advice}")
    return None


def _loss_range(now: Reading) -> Finding | None:
    out = []
    for name, (low, high) in {"loss_d": now.scale.d, "loss_g": now.scale.g}.items():
        value = now.median(name)
        if value is not None and not low - 0.1 <= value <= high + 0.1:  # at the edges they hover
            out.append(f"{name} {value:.3g} (usual: {low:.2g} to {high:.2g})")
    if out:
        advice = "no harm while the samples get better, else try lower --lr_g and --lr_d"
        return Finding("loss_range", "note", f"losses out of their usual range: {', '.join(out)}; {advice}")
    return None


def _warning(name: str, text: str) -> Finding:
    return Finding(name, "warning", text)


class Rule(NamedTuple):
    needs: tuple[str, ...]  # a line without one of these is not judged: what was found before still stands
    judge: Callable[[Reading], Finding | None]


RULES = {
    "loss_scale": Rule(("loss_scale",), _loss_scale),
    "d_winning": Rule(("loss_d",), _d_winning),
    "g_winning": Rule(("logit_real", "logit_fake"), _g_winning),
    "d_blind": Rule(("loss_d", "logit_real", "logit_fake"), _d_blind),
    "spike": Rule((), _spike),
    "extreme_logits": Rule(("logit_real", "logit_fake"), _extreme_logits),
    "gradient_jump": Rule((), _gradient_jump),
    "gradient_gone": Rule((), _gradient_gone),
    "gradient_grows": Rule((), _gradient_grows),
    "collapse": Rule(("diversity",), _collapse),
    "one_layout": Rule(("same_layout",), _one_layout),
    "text_ignored": Rule(("text_sensitivity",), _text_ignored),
    "caption_unread": Rule((), _caption_unread),
    "d_overfits": Rule(("real_sign",), _d_overfits),
    "loss_range": Rule(("loss_d", "loss_g"), _loss_range),
}
"""In the order in which they explain a line: the first of equal level leads the verdict."""

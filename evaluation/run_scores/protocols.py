"""Whether two evaluations were made the same way: only then does a difference of their scores say anything."""

from evaluation.run_scores.reading import Evaluation

FREE = ("fake", "checkpoint", "step", "seed", "batch", "device", "devices", "processes", "versions", "seconds")
"""What is scored, by which noise and on what machine: may differ."""
FREE_WITHIN = ("device", "feature_layers", "points", "clip_weights", "dinov2_weights", "torch", "torch_fidelity",
               "open_clip", "timm")  # fmt: skip
"""Of an extractor: a score carries the layer in its name, others may have been asked for besides. Of fid_infinity's
details: its points are a result. Of weights: their path, which stands beside their hash."""
CONTENT = {"real": ("real_fingerprint", "real_sha256"), "prompts": ("captions_sha256", "prompts_sha256")}
"""A path says less than the hash of what lies there, where both reports have one."""


def differences(one: Evaluation, other: Evaluation) -> list[str]:
    """'n_real 1000 against 2000' of every part of the protocol in which they differ; [] if they may be compared.

    An extractor or a metric that only one of them used is no difference: its scores stand in one report alone.
    """
    return _differences(_comparable(one.protocol), _comparable(other.protocol))


def _differences(one: dict, other: dict) -> list[str]:
    found = []
    for name in [*one, *(name for name in other if name not in one)]:
        mine, theirs = one.get(name), other.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            mine, theirs = ({key: block[key] for key in block if key not in FREE_WITHIN} for block in (mine, theirs))
            found += [f"{_short(name)}.{text}" for text in _differences(mine, theirs)]
        elif mine != theirs and not (None in (mine, theirs) and isinstance(theirs if mine is None else mine, dict)):
            found.append(f"{_short(name)} {_short(mine)} against {_short(theirs)}")
    return _by_content(found, one, other)


def _by_content(found: list[str], one: dict, other: dict) -> list[str]:
    """Without the paths whose contents have equal hashes on both sides."""
    for name, hashes in CONTENT.items():
        if any(one.get(key) is not None and one.get(key) == other.get(key) for key in hashes):
            found = [text for text in found if not text.startswith(f"{name} ")]
    return found


def _comparable(protocol: dict) -> dict:
    return {name: value for name, value in protocol.items() if name not in FREE}


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"

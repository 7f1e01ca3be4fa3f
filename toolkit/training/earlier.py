"""Options that are younger than a run: it goes on as it was begun."""

import dataclasses

from toolkit.config import ResolvedConfig
from toolkit.networks.architecture import as_made

TRAINING = {"match_weight": 0.0, "g_match_weight": 0.0, "fresh_for_g": False, "pairs": False,
            "standing_images": 0}  # fmt: skip
"""What training did before these options existed."""
TRAINING_HEADS = {"frozen_weight": "even", "frozen_lr": 1.0, "frozen_text_lr": 1.0, "frozen_r1": 0.0}
"""The same of the heads on a frozen backbone, where there is one."""


def as_begun(config: ResolvedConfig, recorded: dict) -> tuple[ResolvedConfig, dict]:
    """The config with what a run of `recorded` options did before younger options existed; and those that changed."""
    if not recorded:
        return config, {}
    heads = TRAINING_HEADS if recorded.get("frozen_backbone") else {}
    before = {**TRAINING, **heads, **as_made(recorded)}
    earlier = {name: before[name] for name in before if name not in recorded}
    changed = {name: value for name, value in earlier.items() if getattr(config, name) != value}
    return dataclasses.replace(config, **changed), changed

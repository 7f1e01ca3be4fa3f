"""Options that are younger than a run: it goes on as it was begun."""

import dataclasses

from toolkit.config import ResolvedConfig
from toolkit.networks.architecture import EARLIER as NETWORKS

TRAINING = {"match_weight": 0.0, "g_match_weight": 0.0, "fresh_for_g": False, "pairs": False}
"""What training did before these options existed."""


def as_begun(config: ResolvedConfig, recorded: dict) -> tuple[ResolvedConfig, dict]:
    """The config with what a run of `recorded` options did before younger options existed; and those that changed."""
    if not recorded:
        return config, {}
    earlier = {name: value for name, value in (NETWORKS | TRAINING).items() if name not in recorded}
    changed = {name: value for name, value in earlier.items() if getattr(config, name) != value}
    return dataclasses.replace(config, **changed), changed

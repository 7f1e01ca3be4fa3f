"""What a build must know."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.building.stored_images import ImageRules
from shards.caption_folder.samples import Sample
from shards.embedding_sources import EmbeddingSource
from shards.problems import Problem, first_few, summary
from shards.share import Share
from toolkit.errors import UserError


@dataclass(frozen=True)
class Job:
    """One shard folder to be built."""

    images: Path
    out: Path
    settings: dict
    """Options that must be those of earlier builds of `out`."""
    built_with: dict
    """All options that shape the content; those with which an unfinished build was begun must be the same."""
    rules: ImageRules
    per_part: int
    """Images of a shard; with several crops of each it may hold as many times more samples."""
    workers: int
    share: Share
    near_bits: int | None
    """Images whose perceptual hashes differ in at most so many bits are kept once; None keeps all."""
    strict: bool
    overwrite: bool
    scan: Callable[[], tuple[list[Sample], list[Problem]]]
    embed: Callable[[list[Sample]], EmbeddingSource]

    def stop_if_strict(self, problems: list[Problem]) -> None:
        """Raises UserError if something would be left out that must not be."""
        if self.strict and problems:
            raise UserError(f"--strict and {summary(problems)}{first_few(problems)}")

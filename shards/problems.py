"""What was left out and why: how one thing is named, many are counted, and a line ends with the first few."""

import sys
from collections import Counter
from typing import NamedTuple


class Problem(NamedTuple):
    """Something left out. `path` may end in ':LINE'; `reason` is one line, 'kind: details' or just the kind."""

    path: str
    reason: str


def first_few(problems: list[Problem], count: int = 3) -> str:
    """ ": path: reason; path: reason" for the end of an error line, or ''."""
    shown = "; ".join(f"{path}: {reason}" for path, reason in problems[:count])
    return " ".join(f": {shown}{' ...' if len(problems) > count else ''}".split()) if shown else ""


def print_problems(problems: list[Problem], count: int = 20) -> None:
    """The first of them on stderr, one a line."""
    for path, reason in problems[:count]:
        print("skipped", *f"{path}: {reason}".split(), file=sys.stderr)
    if len(problems) > count:
        print(f"... and {len(problems) - count:,} more", file=sys.stderr)


def summary(problems: list[Problem]) -> str:
    """'skipped 3 (2 image without caption, 1 bad image)'."""
    kinds = Counter(reason.partition(":")[0] for _, reason in problems)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return f"skipped {len(problems):,} ({counts})" if counts else "skipped 0"

"""Prompt by prompt: which the generator obeys, which it does not, of which it knows one image only."""

from collections.abc import Callable

from evaluation.report.page import brief, table
from evaluation.report.run_record import RunRecord
from evaluation.run_scores.reading import Prompt
from shards.report.markup import shortened

SHOWN = 10


def by_prompt(record: RunRecord) -> list[str]:
    page = ["<h2>Prompts</h2>"]
    newest = next((one for one in reversed(record.evaluations) if one.prompts), None)
    if newest is None:
        how = "<code>--metrics clip_score,retrieval,diversity</code> of <code>python -m evaluation</code> measures them"
        return [*page, f"<p>No evaluation holds scores by prompt; {how}.</p>"]
    known = [(agreement, prompt) for prompt in newest.prompts if (agreement := _agreement(prompt)) is not None]
    if known:
        kind = _kind(known[0][1])
        by = "CLIP score" if kind else "rank of the caption among others (1 is best)"
        alike = [(agreement, prompt) for agreement, prompt in known if _kind(prompt) == kind]
        ordered = [prompt for _, prompt in sorted(alike, key=lambda one: one[0], reverse=True)]
        page += _both_ends(ordered, f"of {len(ordered):,} prompts, by {by}")
    varied = [(prompt.diversity, prompt) for prompt in newest.prompts if prompt.diversity is not None]
    if varied:
        least = [prompt for _, prompt in sorted(varied, key=lambda one: one[0])[:SHOWN]]
        page += _list("Least diverse", f"of {len(varied):,} prompts: their images differ least from each other", least)
    if not known and not varied:
        page.append("<p>The prompts of the newest evaluation carry no scores.</p>")
    return page


def _agreement(prompt: Prompt) -> float | None:
    """Higher is better: the CLIP score, or minus the rank where there is none."""
    if prompt.clip_score is not None:
        return prompt.clip_score
    return None if prompt.rank is None else -prompt.rank


def _kind(prompt: Prompt) -> bool:
    return prompt.clip_score is not None


def _both_ends(ordered: list[Prompt], of: str) -> list[str]:
    if len(ordered) <= SHOWN:
        return _list("From best to worst", of, ordered)
    worst = ordered[-min(SHOWN, len(ordered) - SHOWN) :]
    return [*_list("Best", of, ordered[:SHOWN]), *_list("Worst", of, worst[::-1])]


def _list(title: str, of: str, prompts: list[Prompt]) -> list[str]:
    columns: dict[str, Callable[[Prompt], float | None]] = {
        "CLIP score": lambda prompt: prompt.clip_score,
        "rank": lambda prompt: prompt.rank,
        "diversity": lambda prompt: prompt.diversity,
    }
    used = {name: read for name, read in columns.items() if any(read(prompt) is not None for prompt in prompts)}
    rows = [
        [shortened(prompt.caption), *(brief(read(prompt)) for read in used.values()), str(prompt.count or "–")]
        for prompt in prompts
    ]
    numbers = tuple(range(1, 2 + len(used)))
    return [f"<h3>{title}</h3>", f'<p class="note">{of}.</p>', table(["prompt", *used, "images"], rows, numbers)]

"""Greedy combination: what won alone is added to the base one by one, as long as it wins there too."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from benchmarks.ablate.grid import Grid, apart_from, fingerprint
from benchmarks.ablate.results import Results, start
from benchmarks.ablate.table import ranked
from benchmarks.ablate.verdicts import ALPHA, judge
from toolkit.config import ResolvedConfig
from toolkit.durable import write_whole

Measure = Callable[[Grid, Path], Results]
"""Measures a grid in a folder to its end. Raises UserError where the time does not suffice."""
LONGEST = 120


@dataclass
class Combined:
    """What was chosen, and how."""

    grid: Grid
    chosen: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    """Of the control and of what was chosen, as text."""
    rounds: list[dict] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Variant -> why it won alone and was not tried any more."""

    @property
    def name(self) -> str:
        joined = "+".join([self.grid.control, *self.chosen])
        return joined if len(joined) <= LONGEST else f"{self.grid.control}+{len(self.chosen)}"

    def on_top(self, candidates: list[str]) -> Grid:
        """The next round: the candidates on the chosen, which is the control."""
        variants = {self.name: {}} | {name: self.grid.variants[name] for name in candidates}
        return replace(self.grid, base=self.options, variants=variants, control=self.name, test=None)


def combine(grid: Grid, results: Results, out: Path, measure: Measure, alpha: float = ALPHA) -> Combined:
    """`results`: the whole grid, measured. Later rounds go into OUT/round_1 and so on; the winner of a round is the
    control of the next, with the runs it has: its luck makes it harder to beat, not easier."""
    own = grid.variants[grid.control]
    found = Combined(grid, options=dict(own if "config" in own else {**grid.base, **own}))
    won_alone = winners(results, alpha)
    for name in [name for name in won_alone if "config" in grid.variants[name]]:
        found.left_out[name] = "it stands on another config"
    candidates = [name for name in won_alone if name not in found.left_out]
    while True:
        wins = [name for name in winners(results, alpha) if name in candidates]
        found.rounds.append(_round(results, found, candidates, wins, alpha))
        if not wins:
            break
        candidates = _take(found, wins[0], candidates)
        _write(found, out)
        if not candidates:
            break
        following, folder = found.on_top(candidates), out / f"round_{len(found.rounds)}"
        _hand_on(results, wins[0], following, folder)
        results = measure(following, folder)
    _write(found, out)
    return found


def winners(results: Results, alpha: float) -> list[str]:
    """The variants better than the control by the criterion, the best first."""
    verdicts = judge(results, results.grid["criterion"], alpha)
    return [name for name in ranked(results) if name in verdicts and verdicts[name].word == "better"]


def _take(found: Combined, winner: str, candidates: list[str]) -> list[str]:
    """Returns the candidates that remain: those that set another option than any that was taken."""
    found.chosen.append(winner)
    found.options |= found.grid.variants[winner]
    remaining = []
    for name in candidates:
        taken = sorted(found.grid.variants[name].keys() & found.grid.variants[winner].keys())
        if name != winner and taken:
            found.left_out[name] = f"it sets {', '.join(taken)}, as {winner} does"
        elif name != winner:
            remaining.append(name)
    return remaining


def _hand_on(results: Results, winner: str, following: Grid, folder: Path) -> None:
    """The winner's runs are the next control's: the same training under another name."""
    fresh = start(following, folder)
    definition = fingerprint(following.definition(following.control))
    for run in results.runs:
        if run["variant"] == winner and run["definition"] == definition:
            fresh.put(run | {"variant": following.control})
    fresh.write(folder)


def _round(results: Results, found: Combined, candidates: list[str], wins: list[str], alpha: float) -> dict:
    verdicts = judge(results, results.grid["criterion"], alpha)
    told = {
        name: {"difference": verdict.difference, "p_holm": verdict.p_holm, "verdict": verdict.word}
        for name, verdict in verdicts.items()
    }
    return {"base": found.name, "candidates": candidates, "winner": wins[0] if wins else None, "verdicts": told}


def _write(found: Combined, out: Path) -> None:
    """OUT/combined.json, and combined.yaml for `--config` of a training."""
    about = {
        "criterion": found.grid.criterion_score(), "chosen": found.chosen, "left_out": found.left_out,
        "rounds": found.rounds,
    }  # fmt: skip
    write_whole(out / "combined.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    grid = found.on_top([])
    options = apart_from(grid.config(grid.control), asdict(ResolvedConfig()))
    options.pop("kimg", None)
    head = f"# Chosen by python -m benchmarks.ablate --combine: {' + '.join([found.grid.control, *found.chosen])}\n"
    write_whole(out / "combined.yaml", (head + yaml.safe_dump(options, sort_keys=False)).encode())

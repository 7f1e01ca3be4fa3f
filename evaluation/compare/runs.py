"""Which evaluation of each run is compared, and which runs are one variant trained with several seeds."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from evaluation.report.run_record import newest_state, read_config
from evaluation.run_scores.protocols import differences
from evaluation.run_scores.reading import FOLDER, Evaluation, best_by, read_evaluations
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.run_folder.snapshot import PLACES

NEUTRAL = (*PLACES, "seed", "workers", "resident", "max_bad", "timeout", "log_every", "sample_every", "ckpt_every",
           "keep", "on_save_error", "score", "score_count", "score_weights", "score_layer", "check_ranks_every",
           "n_sample", "track", "track_project", "wandb_mode", "eval_every", "eval_count", "eval_minutes",
           "metrics")  # fmt: skip
"""Options that leave the trained network as it is, but for the seed: equal runs but for these are repetitions."""


@dataclass(frozen=True)
class ScoredRun:
    """A run and the one evaluation of it that counts."""

    folder: Path
    config: ResolvedConfig
    data: str  # fingerprint of the data, or where it lay if no checkpoint tells
    evaluation: Evaluation

    @property
    def identity(self) -> dict:
        """What makes the variant: every option that changes the network, and the data."""
        return {"data": self.data} | {name: value for name, value in asdict(self.config).items() if name not in NEUTRAL}


@dataclass
class Variant:
    """Runs that differ by seed alone."""

    label: str
    runs: list[ScoredRun] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """The score of that name of each run that has it."""
        return [run.evaluation.scores[name] for run in self.runs if name in run.evaluation.scores]


def read_scored(folder: Path, step: int | None, best: str | None, file: str | None) -> ScoredRun:
    """Raises UserError if the folder is no run or holds no such evaluation."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name run folders, as --out_dir of toolkit/train.py")
    config = read_config(folder)
    found, damaged = read_evaluations(folder)
    spoilt = f" ({len(damaged)} damaged, the first {damaged[0]})" if damaged else ""
    asked = [one for one in found if (step is None or one.step == step) and (file is None or one.path.name == file)]
    chosen = _best(best, asked) if best else next(reversed(asked), None)
    if chosen is None:
        what = f" with a {best}" if best else ""
        what += f" of step {step}" if step is not None else ""
        what += f" named {file}" if file else ""
        make = f"python -m evaluation --real ... --fake {folder} --out {folder / FOLDER}/NAME.json makes one"
        raise UserError(f"{folder / FOLDER} holds no evaluation{what}{spoilt}; {make}")
    return ScoredRun(folder, config, str(newest_state(folder).get("data_fingerprint") or config.data), chosen)


def _best(name: str, asked: list[Evaluation]) -> Evaluation | None:
    """Among those made like the newest that has the score: by another protocol 'best' means nothing."""
    holding = [one for one in asked if name in one.scores]
    return best_by(name, [one for one in holding if not differences(one, holding[-1])])


def group(runs: list[ScoredRun]) -> list[Variant]:
    """Variants A, B, ... in the order in which they come first."""
    variants: list[Variant] = []
    for run in runs:
        known = next((variant for variant in variants if variant.runs[0].identity == run.identity), None)
        if known is None:
            known = Variant(letters(len(variants)))
            variants.append(known)
        known.runs.append(run)
    return variants


def letters(number: int) -> str:
    """0, 1, ..., 25, 26 -> A, B, ..., Z, AA."""
    rest, last = divmod(number, 26)
    return (letters(rest - 1) if rest else "") + chr(ord("A") + last)


def objections(variants: list[Variant]) -> list[str]:
    """Why these numbers cannot be compared honestly, a line each; [] if they can."""
    runs = [run for variant in variants for run in variant.runs]
    found = []
    for run in runs[1:]:
        if different := differences(runs[0].evaluation, run.evaluation):
            found.append(f"{runs[0].folder} and {run.folder} were evaluated in different ways: {'; '.join(different)}")
    for variant in variants:
        steps = {run.evaluation.step for run in variant.runs}
        if len(steps) > 1:
            where = ", ".join(f"{run.folder} {run.evaluation.step}" for run in variant.runs)
            found.append(
                f"runs that differ by seed alone were evaluated at different steps ({where}); name one by --step"
            )
        found += _doubled(variant)
    return found


def _doubled(variant: Variant) -> list[str]:
    """Equal seeds and options are one run counted twice; it would make the noise look smaller than it is."""
    by_seed: dict[int, Path] = {}
    found = []
    for run in variant.runs:
        first = by_seed.setdefault(run.config.seed, run.folder)
        if first is not run.folder:
            found.append(
                f"{first} and {run.folder} are the same variant with the same seed {run.config.seed}; name one"
            )
    return found

"""results.json: one record for each run, small enough to commit, and all that table and plots are made from."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ablate.grid import Grid
from toolkit.durable import write_whole
from toolkit.errors import UserError

NAME = "results.json"


@dataclass
class Results:
    """What is known so far."""

    grid: dict
    """control, criterion (as reports name it), kimg, seeds, variants in their order with their options, data."""
    runs: list[dict] = field(default_factory=list)
    floor: dict | None = None
    """Scores of real images against others: {"count", "scores"}."""

    def find(self, variant: str, seed: int) -> dict | None:
        return next((run for run in self.runs if (run["variant"], run["seed"]) == (variant, seed)), None)

    def put(self, run: dict) -> None:
        """In place of an earlier record of the same variant and seed."""
        self.runs = [one for one in self.runs if (one["variant"], one["seed"]) != (run["variant"], run["seed"])] + [run]

    def of(self, variant: str, status: str = "finished") -> list[dict]:
        """In the order of their seeds."""
        found = [run for run in self.runs if run["variant"] == variant and run["status"] == status]
        return sorted(found, key=lambda run: run["seed"])

    def variants(self) -> list[str]:
        """Those with a run, the control first, then as in the grid."""
        held = list(dict.fromkeys([*self.grid["variants"], *(run["variant"] for run in self.runs)]))
        order = [self.grid["control"], *(name for name in held if name != self.grid["control"])]
        return [name for name in order if any(run["variant"] == name for run in self.runs)]

    def write(self, folder: Path) -> None:
        """OUT/results.json, whole or not at all."""
        place = {name: i for i, name in enumerate(self.variants())}
        runs = sorted(self.runs, key=lambda run: (place[run["variant"]], run["seed"]))
        content = {"grid": self.grid, "floor": self.floor, "runs": runs}
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def start(grid: Grid, folder: Path) -> Results:
    """Those of an earlier call of the same grid, or none yet."""
    about = {
        "name": grid.name, "control": grid.control, "criterion": grid.criterion_score(), "kimg": grid.kimg,
        "seeds": list(grid.seeds), "variants": list(grid.variants), "data": grid.shards.manifest.fingerprint,
        "samples": len(grid.shards), "resolution": grid.shards.manifest.resolution,
        "options": {name: grid.definition(name)["options"] for name in grid.variants},  # config files may change
    }  # fmt: skip
    if not (folder / NAME).is_file():
        return Results(about)
    known = read(folder)
    return Results(about, known.runs, known.floor)


def read(path: Path) -> Results:
    """A results.json, or the folder it lies in. Raises UserError."""
    path = path / NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Results(content["grid"], content["runs"], content["floor"])
        found.variants(), [(run["seed"], run["status"], run["definition"]) for run in found.runs]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no results of benchmarks.ablate ({error!r})") from None
    return found


def merge(paths: list[Path]) -> Results:
    """Several as one; the first says what the control is. Raises UserError for what must not stand in one table."""
    merged, *others = map(read, paths)
    for path, other in zip(paths[1:], others, strict=True):
        for key in ("kimg", "data"):
            if other.grid[key] != merged.grid[key]:
                raise UserError(f"{paths[0]} and {path} differ in {key}; they do not compare")
        for run in other.runs:
            held = merged.find(run["variant"], run["seed"])
            same = [one for one in merged.runs if one["variant"] == run["variant"]]
            if any(one["definition"] != run["definition"] for one in same):
                raise UserError(f"{path}: variant {run['variant']} is another training than in {paths[0]}; rename one")
            if held is None or held["status"] != "finished":
                merged.put(run)
        merged.grid["variants"] = list(dict.fromkeys([*merged.grid["variants"], *other.grid["variants"]]))
        merged.floor = merged.floor or other.floor
    return merged

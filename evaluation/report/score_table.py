"""The numbers: the newest of each score, how sure it is, what to read it against, and how it was made."""

from pathlib import Path

from evaluation.report.page import brief, code, count, table, warning
from evaluation.report.run_record import RunRecord
from evaluation.run_scores.protocols import differences
from evaluation.run_scores.reading import Evaluation, best_by
from evaluation.run_scores.score_names import CONTROLS, in_order, interval, parse, spread
from shards.report.markup import folded, shortened, text

PROTOCOL_SHOWN = 2000
"""Characters of one protocol entry."""


def scores(record: RunRecord) -> list[str]:
    page = ["<h2>Scores</h2>"]
    if not record.evaluations:
        return [*page, *_none_yet(record)]
    newest = record.evaluations[-1]
    alike = [one for one in record.evaluations if not differences(one, newest)]
    page.append(f"<p>{_introduction(newest)}</p>")
    names = in_order(set(newest.scores) | set(newest.missing))
    if names:
        head = ["score", "newest", "how sure", "to compare with", "best"]
        page.append(table(head, [_row(name, newest, alike) for name in names], numbers=(1,)))
    else:
        page.append("<p>The newest evaluation holds no score.</p>")
    if newest.notes:
        page.append(warning([shortened(note, 400) for note in newest.notes[:40]]))
    page += [_protocol(one) for one in [newest, *best_others(names, newest, alike)]]
    others = len(record.evaluations) - len(alike)
    if others:
        made = f"{count(others, 'evaluation')} made"
        why = "; ".join(differences(next(one for one in record.evaluations if one not in alike), newest)[:3])
        page.append(f'<p class="note">Neither compared nor drawn: {made} in another way ({text(why)}).</p>')
    return page


def best_others(names: list[str], newest: Evaluation, alike: list[Evaluation]) -> list[Evaluation]:
    """Those with the best value of a score, but for the newest."""
    best = [best_by(name, alike) for name in names]
    return [one for one in alike if one is not newest and any(one is other for other in best)]


def _none_yet(record: RunRecord) -> list[str]:
    data = record.config.data if record.config and record.config.data else "SHARDS"
    run = record.folder
    how = f"--metrics fid,kid,precision_recall --real {data} --fake {run} --out {run}/evaluations/full.json"
    return [f"<p>No evaluation yet. One is made by</p><p>{code(f'python -m evaluation {how}')}</p>"]


def _introduction(newest: Evaluation) -> str:
    protocol = newest.protocol
    sides = {"n_real": "real", "n_fake": "generated"}
    counts = [f"{_count(protocol[name])} {side}" for name, side in sides.items() if protocol.get(name) is not None]
    told = [] if newest.step is None else [f"step {newest.step:,}"]
    told += [f"{' and '.join(counts)} images"] if counts else []
    told += [f"{shortened(str(protocol['resolution']))} px"] if protocol.get("resolution") else []
    believed = "What a score sees, and from how many images on to believe it, stands in docs/reading_scores.md."
    return f"Newest evaluation: {', '.join([*told, code(newest.path.name)])}. {believed}"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else shortened(str(value))


def _row(name: str, newest: Evaluation, alike: list[Evaluation]) -> list[str]:
    parsed = parse(name)
    arrow, way = ("↓", "lower") if parsed.lower_is_better else ("↑", "higher")
    return [
        f"<b>{text(name)}</b> {arrow}<br>{text(parsed.title)}; <small>{way} is better</small>",
        brief(newest.scores.get(name)),
        _how_sure(name, newest.scores),
        _control(name, newest.scores),
        _best(name, newest, alike),
    ]


def _how_sure(name: str, scores: dict[str, float]) -> str:
    if ends := interval(name, scores):
        return f"95 %: {brief(ends[0])} to {brief(ends[1])}"
    if around := spread(name, scores):
        return f"{around[1]} {brief(around[0])}"
    return ""


def _control(name: str, scores: dict[str, float]) -> str:
    parsed = parse(name)
    controls = {parsed.sibling(stem): what for stem, what in CONTROLS.get(parsed.stem, {}).items()}
    return "; ".join(f"{what}: {brief(scores[control])}" for control, what in controls.items() if control in scores)


def _best(name: str, newest: Evaluation, alike: list[Evaluation]) -> str:
    """Among those made the same way as the newest."""
    best = best_by(name, alike)
    if best is None or len([one for one in alike if name in one.scores]) < 2:
        return ""
    if best is newest:
        return "this one"
    where = text(best.path.name) if best.step is None else f"step {best.step:,}"
    return f"{brief(best.scores[name])} at {where}"


def _protocol(one: Evaluation) -> str:
    items = [f"{shortened(name)}: {_value(value)}" for name, value in one.protocol.items()]
    listed = "".join(f"<li>{item}</li>" for item in items) or "<li>not recorded</li>"
    title = f"How {text(Path(one.path).name)} was made"
    return f"<details><summary>{title}</summary><ul>{listed}</ul></details>"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{shortened(key)} {shortened(str(inner), PROTOCOL_SHOWN)}" for key, inner in value.items())
    return shortened(str(value), PROTOCOL_SHOWN)


def damaged_files(record: RunRecord) -> list[str]:
    """What could not be read, named first: everything below is without it."""
    if not record.damaged:
        return []
    title = f"Damaged and left out: <b>{count(len(record.damaged), 'file')}</b>"
    return [
        f'<div class="warn">{folded(title, [text(line) for line in record.damaged[:200]], len(record.damaged))}</div>'
    ]

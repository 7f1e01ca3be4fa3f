"""What the monitor found while the run trained, and what was done about it."""

from collections.abc import Iterable

from evaluation.report.page import count, table, warning
from evaluation.report.run_record import RunRecord
from shards.report.markup import folded, shortened, text

NOTES_SHOWN = 200


def health(record: RunRecord) -> list[str]:
    page = ["<h2>Health</h2>"]
    if not record.events:
        return [*page, "<p>No events.json, or nothing in it: the monitor has not said anything.</p>"]
    verdicts = [event for event in record.events if event["name"] == "verdict"]
    if verdicts:
        last = verdicts[-1]
        page.append(f"<p>Last verdict, at step {last['step']:,}: <b>{shortened(last['text'], 400)}</b></p>")
    if record.rollbacks:
        told = [f"step {event['step']:,}: {shortened(event['text'], 400)}" for event in record.rollbacks[:20]]
        page.append(warning([f"<b>{count(len(record.rollbacks), 'rollback')}</b>", *told]))
    found = [
        event for event in record.events if event["level"] in ("warning", "action") and event["name"] != "rollback"
    ]
    if found:
        page.append(table(["finding", "how often", "steps", "the last time"], _by_name(found), numbers=(1,)))
    else:
        page.append("<p>No warnings.</p>")
    notes = [event for event in record.events if event["level"] not in ("warning", "action")]
    items = [f"step {event['step']:,}: {shortened(event['text'], 400)}" for event in notes[-NOTES_SHOWN:]]
    if items:
        page.append(folded(count(len(notes), "note"), items, len(notes)).replace("<details open>", "<details>", 1))
    return page


def _by_name(events: Iterable[dict]) -> list[list[str]]:
    """A row per kind of finding, the weightiest and then the most frequent first."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for event in events:
        groups.setdefault((event["level"], event["name"]), []).append(event)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "action", -len(item[1])))
    return [
        [
            f"<b>{text(name)}</b> {text(level)}",
            f"{len(group):,}",
            f"{group[0]['step']:,} – {group[-1]['step']:,}" if len(group) > 1 else f"{group[0]['step']:,}",
            shortened(group[-1]["text"], 400),
        ]
        for (level, name), group in ordered
    ]

"""Results as a table: on the console after measuring, and in the README from the committed files.

`python -m benchmarks.table` writes the README's tables anew, with FILE ... it prints those of files.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.side_by_side import Row

RESULTS, README = Path(__file__).parent / "results", Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- made by python -m benchmarks.table -->\n", "<!-- end -->\n"
HEAD = ("what", "point", "beside", "theirs", "ours", "times as fast", "equal", "besides")


def draw_table(rows: Iterable[Row]) -> str:
    """GitHub's Markdown, a line per row."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(_cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw_file(file: Path) -> str:
    """The table of one result file, under a line that says what it was measured on."""
    record = json.loads(file.read_text(encoding="utf-8"))
    rows = [Row(**row) for row in record["rows"]]
    return (
        f"{record['device']}, {record['threads']} thread of torch {record['torch']}, {file.stem[:10]}:\n\n"
        f"{draw_table(rows)}\n"
    )


def newest(folder: Path = RESULTS) -> list[Path]:
    """The newest file of each device."""
    by_device = {file.stem[11:]: file for file in sorted(folder.glob("????-??-??-*.json"))}
    return [by_device[name] for name in sorted(by_device)]


def with_tables(text: str, files: list[Path]) -> str:
    """The README's text with what stands between its two marks made from `files`."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(map(draw_file, files)) + "\n" + END + after


def main(files: list[Path]) -> None:
    if files:
        print("\n".join(map(draw_file, files)))
    else:
        README.write_text(with_tables(README.read_text(encoding="utf-8"), newest()), encoding="utf-8")


def _cells(row: Row) -> tuple[str, ...]:
    if row.ratio is None:
        return row.benchmark, row.point, row.baseline, "", "", "", row.parity, row.note
    ratio = f"**{row.ratio:.2f}** ({row.lowest:.2f}–{row.highest:.2f})"
    theirs, ours = (f"{_number(rate)} {row.unit}" for rate in (row.theirs, row.ours))
    return row.benchmark, row.point, row.baseline, theirs, ours, ratio, row.parity, row.note


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])

"""The report of a shard folder, and the names of what stands beside tars, index and manifest."""

import json
from pathlib import Path

from shards.problems import Problem

REPORT_NAME, PAGE_NAME = "report.json", "report.html"
SOURCES_NAME = "sources.jsonl"
"""Which image and captions each sample is of: lets a build add what is new."""


def report_bytes(written: int, skipped: list[Problem]) -> bytes:
    """Of `report.json`: how many samples were written, and each file left out with its reason."""
    content = {"written": written, "skipped": [{"path": path, "reason": reason} for path, reason in skipped]}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def write_report(folder: Path, written: int, skipped: list[Problem]) -> None:
    with (folder / REPORT_NAME).open("xb") as file:
        file.write(report_bytes(written, skipped))

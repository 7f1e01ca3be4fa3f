"""The options of the run: what differs from the defaults, and from another run."""

from dataclasses import asdict

from evaluation.report.page import code, table
from evaluation.report.run_record import RunRecord
from shards.report.markup import text
from toolkit.command_line import dump
from toolkit.config import ResolvedConfig


def options(record: RunRecord, against: ResolvedConfig | None, other_name: str) -> list[str]:
    """`against`: the options of the run called `other_name`; None: compared with no other."""
    page = ["<h2>Options</h2>"]
    if record.config is None:
        return [*page, "<p>config.yaml is missing or cannot be read.</p>"]
    if against is not None:
        page += _difference(f"Against {text(other_name)}", record.config, against, text(other_name))
    page += _difference("Against the defaults", record.config, ResolvedConfig(), "default")
    return [*page, f"<details><summary>All options</summary><pre>{text(dump(record.config).strip())}</pre></details>"]


def changed(config: ResolvedConfig, other: ResolvedConfig) -> dict[str, tuple[object, object]]:
    """Option -> (its value, that of `other`) of those that differ, in the order of their declaration."""
    mine, theirs = asdict(config), asdict(other)
    return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def _difference(title: str, config: ResolvedConfig, other: ResolvedConfig, column: str) -> list[str]:
    rows = [
        [code(name), *(code("''" if value == "" else value) for value in (mine, theirs))]
        for name, (mine, theirs) in changed(config, other).items()
    ]
    if not rows:
        return [f"<h3>{title}</h3><p>None differ.</p>"]
    return [f"<h3>{title}</h3>", table(["option", "this run", column], rows)]

"""A page to look at: `python -m shards.report DIR` writes DIR/report.html."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from shards.report import images, sections
from shards.report.findings import Findings, collect
from shards.report.markup import document, text
from shards.report_file import PAGE_NAME, REPORT_NAME
from toolkit.command_line import data_first, run
from toolkit.data.addresses import is_address
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_reader import ShardSet
from toolkit.durable import write_whole
from toolkit.errors import UserError, check


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about a shard folder: one file, no network, no script; equal bytes for equal shards."""

    data: str
    """The shard folder, local or at an https://, s3:// or gs:// address; may also stand first without its flag."""
    out: Path | None = None
    """The file to write; default report.html in the shard folder, of an address in this one."""
    samples: int = 100_000
    """Samples read, evenly spread, 1 to 10000000; default 100000."""
    near: int = 4
    """Images are alike if at most so many of 64 bits of their perceptual hashes differ, 0 to 10; default 4."""
    compare: int = 4000
    """Different captions compared with each other by their embeddings, 2 to 20000; default 4000."""
    pairs: int = 12
    """Pairs of closest captions shown, 1 to 200; default 12."""
    show: int = 60
    """Random samples shown, 1 to 1000; default 60."""
    seed: int = 0
    """Draws the samples shown; default 0."""

    def __post_init__(self) -> None:
        check(1 <= self.samples <= 10**7, "--samples", self.samples, "from 1 to 10000000")
        check(0 <= self.near <= 10, "--near", self.near, "from 0 to 10 bits")
        check(2 <= self.compare <= 20_000, "--compare", self.compare, "from 2 to 20000")
        check(1 <= self.pairs <= 200, "--pairs", self.pairs, "from 1 to 200")
        check(1 <= self.show <= 1000, "--show", self.show, "from 1 to 1000")


def main(options: ReportOptions) -> None:
    shard_set = open_shards(options.data)
    skipped = read_skipped(shard_set.folder)
    found = collect(shard_set, options.samples, options.compare)
    if not found.numbers:
        raise UserError(f"no sample of {options.data} can be read ({found.damaged[0]}); build the shards again")
    page = build_page(options, shard_set, found, skipped)
    path = options.out or Path("" if is_address(options.data) else options.data, PAGE_NAME)
    try:
        write_whole(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file with --out") from None
    print(f"wrote {path} ({sections.megabytes(len(page))}); open it in any browser")


def build_page(options: ReportOptions, shard_set: ShardSet, found: Findings, skipped: list[dict] | None) -> bytes:
    """The page as UTF-8. No date and no path: it is a function of the shards and the options."""
    manifest = shard_set.manifest
    name = str(manifest.built_with.get("input") or "a shard folder")
    body = [
        f"<h1>{text(name)}</h1>",
        *sections.overview(manifest, found, options.samples, skipped),
        *sections.left_out(skipped),
        *images.contact_sheet(shard_set, found, options.show, options.seed),
        *sections.captions(found),
        *sections.source_sizes(found, manifest.resolution),
        *images.near_duplicates(shard_set, found, options.near),
        *images.nearest_captions(shard_set, found, options.pairs),
    ]
    return document(f"{name}: shards", body).encode("utf-8", "backslashreplace")


def read_skipped(folder: Path) -> list[dict] | None:
    """The 'skipped' of report.json; None if there is no such file. Raises UserError if it is damaged."""
    path = folder / REPORT_NAME
    if not path.is_file():
        return None
    try:
        skipped = json.loads(path.read_text(encoding="utf-8"))["skipped"]
        return [{"path": str(entry["path"]), "reason": str(entry["reason"])} for entry in skipped]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); delete it or build the shards again") from None


if __name__ == "__main__":
    run(main, ReportOptions, data_first(sys.argv[1:]))

"""Caption folders -> samples: which picture has which captions, and what had to be left out, by name.

Four forms, looked for in this order: a table (`captions.jsonl`, ...); `images/` beside `captions/`; a same-stem
`.txt` beside each picture; class folders, only with a template, because a folder name is no caption by itself.
"""

import csv
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

from toolkit.decoding import SUFFIXES
from toolkit.errors import UserError, check

TABLES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
MAX_CHARACTERS = 10_000
MAX_TEXT_BYTES = 1_000_000


@dataclass(frozen=True)
class Sample:
    """A picture with its captions; `key`: its path below the folder without suffix, with forward slashes."""

    key: str
    picture: Path
    captions: tuple[str, ...]


class Problem(NamedTuple):
    """Something left out. `path` may end in ':LINE'; `reason` is one line, 'kind: details' or just the kind."""

    path: str
    reason: str


@dataclass(frozen=True)
class CaptionRules:
    """How to read a caption folder; '' leaves each to be found out."""

    where: str = ""
    file_column: str = ""
    caption_column: str = ""
    class_template: str = ""

    def __post_init__(self) -> None:
        check(not self.where or self.where.find("=") > 0, "--where", self.where, "FIELD=VALUE, e.g. split=train")
        has_place = "{}" in self.class_template or not self.class_template
        check(has_place, "--class_template", self.class_template, "a caption with {} for the folder's name")


@dataclass
class _Found:
    """What a folder holds, before pictures and captions are matched: by key; paths relative to the folder."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add_picture(self, key: str, path: str, place: str) -> bool:
        first = self.pictures.setdefault(key, path)
        if first != path:
            self.problems.append(Problem(place, f"same name: {path} and {first} differ only in the suffix"))
        return first == path

    def add_captions(self, key: str, texts: Iterable[tuple[str, object]]) -> None:
        """`texts`: (place, text) pairs; bad ones become problems, equal ones of a key count once."""
        kept = self.captions.setdefault(key, [])
        for place, text in texts:
            try:
                caption = clean_caption(text)
            except UserError as error:
                self.problems.append(Problem(place, str(error)))
            else:
                if caption not in kept:
                    kept.append(caption)


def clean_caption(text: object) -> str:
    """NFC, every run of whitespace one space. UserError (the reason alone) for what is no usable caption."""
    if not isinstance(text, str | None):
        raise UserError(f"caption is no text: found {type(text).__name__}")
    caption = " ".join(unicodedata.normalize("NFC", (text or "").removeprefix("\ufeff")).split())
    if not caption:
        raise UserError("empty caption")
    if len(caption) > MAX_CHARACTERS:
        raise UserError(f"caption too long: {len(caption):,} characters, at most {MAX_CHARACTERS:,}")
    for character in caption:
        kind = unicodedata.category(character)
        if kind == "Cs":  # bytes that are no UTF-8 arrive as lone surrogates, see `surrogateescape` below
            raise UserError(f"not UTF-8: 0x{ord(character) & 0xFF:02X} in the caption")
        if kind == "Cc":
            raise UserError(f"control character: U+{ord(character):04X} in the caption")
    return caption


def find_samples(folder: Path, rules: CaptionRules) -> tuple[list[Sample], list[Problem]]:
    """The samples of a caption folder, sorted by key, and what was left out.

    Raises UserError if the folder is missing, or holds no pictures, no captions or no row that `where` wants.
    """
    found = _read(folder, rules, need_pictures=True)
    samples = []
    for key in sorted(found.captions):
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in key):  # would damage lists of names
            found.problems.append(Problem(repr(key), "bad file name: control or undecodable characters"))
        elif found.captions[key] and key in found.pictures:
            samples.append(Sample(key, folder / found.pictures[key], tuple(found.captions[key])))
    return samples, found.problems


def find_captions(folder: Path, rules: CaptionRules) -> tuple[dict[str, tuple[str, ...]], list[Problem]]:
    """Key -> captions, sorted by key, of a folder that need not hold pictures; keys as of `find_samples`."""
    found = _read(folder, rules, need_pictures=False)
    return {key: tuple(captions) for key, captions in sorted(found.captions.items()) if captions}, found.problems


def _read(folder: Path, rules: CaptionRules, need_pictures: bool) -> _Found:
    files = _list_files(folder)
    table = next((name for name in TABLES if name in files), None)
    if rules.where and not table:
        raise UserError(f"--where needs a table, and {folder} holds none of {', '.join(TABLES)}")
    if table:
        if rules.class_template:
            raise UserError(f"--class_template is for class folders, but {folder} has captions in {table}; drop one")
        return _from_table(folder, table, files, rules, need_pictures)
    if (folder / "images").is_dir() and (folder / "captions").is_dir():
        pictures = _by_key(files, SUFFIXES, "images/")
        return _from_texts(folder, pictures, _by_key(files, (".txt",), "captions/"), need_pictures)
    pictures, texts = _by_key(files, SUFFIXES), _by_key(files, (".txt",))
    if need_pictures and not pictures:
        raise UserError(f"{folder} holds {len(files):,} files but no picture ({', '.join(SUFFIXES)})")
    keys = {key for key, _ in pictures}
    if any(key in keys for key, _ in texts) or (texts and not need_pictures and not rules.class_template):
        return _from_texts(folder, pictures, texts, need_pictures)
    if rules.class_template:
        return _from_class_folders(pictures, rules.class_template)
    raise UserError(
        f"{folder} holds {len(pictures):,} pictures but no captions: neither a table ({', '.join(TABLES)}) "
        f"nor .txt files of the same name. If its folders are classes, add --class_template 'a photo of {{}}'"
    )


def _list_files(folder: Path) -> dict[str, None]:
    """Relative paths of plain files, without hidden ones. A folder reached twice is read once: no loops."""
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}")
    visited, waiting, files = set(), [""], []
    while waiting:
        inside = waiting.pop()
        try:
            status = os.stat(folder / inside)
            names = sorted(os.listdir(folder / inside))
        except OSError as error:
            raise UserError(f"{folder / inside} cannot be read ({error.strerror})") from None
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        paths = [f"{inside}{name}" for name in names if not name.startswith(".")]
        files += [path for path in paths if os.path.isfile(folder / path)]
        waiting += [f"{path}/" for path in reversed(paths) if os.path.isdir(folder / path)]
    if not files:
        raise UserError(f"{folder} holds no files; it needs pictures and captions")
    return dict.fromkeys(sorted(files))


def _key(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _by_key(files: Iterable[str], suffixes: tuple[str, ...], below: str = "") -> list[tuple[str, str]]:
    """(key, path) of the files with one of the suffixes, keys relative to `below`."""
    chosen = (path for path in files if path.startswith(below) and path.lower().endswith(suffixes))
    return [(_key(path[len(below) :]), path) for path in chosen]


def _from_texts(folder: Path, pictures: list, texts: list, need_pictures: bool) -> _Found:
    found = _Found()
    for key, path in pictures:
        found.add_picture(key, path, path)
    for key, path in texts:
        if need_pictures and key not in found.pictures:
            found.problems.append(Problem(path, f"caption without image: no {key} with {', '.join(SUFFIXES)}"))
        elif (folder / path).stat().st_size > MAX_TEXT_BYTES:
            found.problems.append(Problem(path, f"caption too long: over {MAX_TEXT_BYTES:,} bytes"))
        else:
            text = (folder / path).read_bytes().decode("utf-8-sig", "surrogateescape")
            lines = [(f"{path}:{i}", line) for i, line in enumerate(re.split(r"\r\n?|\n", text), 1) if line.strip()]
            found.add_captions(key, lines or [(path, "")])
    if need_pictures:
        bare = (path for key, path in found.pictures.items() if key not in dict(texts))
        found.problems += [Problem(path, "image without caption") for path in bare]
    return found


def _from_class_folders(pictures: list, template: str) -> _Found:
    found = _Found()
    for key, path in pictures:
        name = re.sub(r"[_-]", " ", PurePosixPath(path).parent.name)
        if not name:
            found.problems.append(Problem(path, "image without caption: it lies in no class folder"))
        elif found.add_picture(key, path, path):
            found.add_captions(key, [(path, template.replace("{}", name))])
    return found


def _from_table(folder: Path, table: str, files: Iterable[str], rules: CaptionRules, need_pictures: bool) -> _Found:
    found, named, values, wanted = _Found(), set(), set(), 0
    for place, fields in _rows(folder / table, found.problems):
        try:
            path = _path(_value(fields, rules.file_column, FILE_COLUMNS))
            named.add(str(path))
            if not _is_wanted(fields, rules.where, values):
                continue
            wanted += 1
            if need_pictures and not (folder / path).is_file():
                raise UserError(f"missing file: {path}")
            if found.add_picture(_key(str(path)), str(path), place):
                texts = _value(fields, rules.caption_column, CAPTION_COLUMNS)
                texts = texts if isinstance(texts, list) and texts else [texts]
                found.add_captions(_key(str(path)), [(place, text) for text in texts])
        except UserError as error:
            found.problems.append(Problem(place, str(error)))
    if rules.where and not wanted:
        some = ", ".join(sorted(values)[:10])
        raise UserError(f"--where {rules.where}: no row of {folder / table} has that; the field is one of: {some}")
    if need_pictures:
        bare = (path for _, path in _by_key(files, SUFFIXES) if path not in named)
        found.problems += [Problem(path, f"image without caption: not in {table}") for path in bare]
    return found


def _is_wanted(fields: dict, where: str, values: set[str]) -> bool:
    """Does the row match 'FIELD=VALUE'? Its value joins `values`, for the error if none does."""
    name, _, wanted = where.partition("=")
    value = fields.get(name)
    text = value if isinstance(value, str) else json.dumps(value)  # true, 3, null: as they stand in the file
    values.add(text)
    return not where or text == wanted


def _value(fields: dict, wanted: str, usual: tuple[str, ...]) -> object:
    """The column `wanted` of a row, or the first of the usual ones that it has."""
    names = (wanted,) if wanted else usual
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise UserError(f"no such column: {' or '.join(names)}; the row has {', '.join(map(str, fields))}")
    return fields[name]


def _path(value: object) -> PurePosixPath:
    path = PurePosixPath(value if isinstance(value, str) else "")
    if not path.name:
        raise UserError(f"no file name: found {value!r}")
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"path leaves the folder: {path}")
    return path


def _rows(table: Path, problems: list[Problem]) -> Iterator[tuple[str, dict]]:
    """('captions.jsonl:LINE', row); malformed rows go to `problems`."""
    read = _csv_rows if table.suffix == ".csv" else _json_rows
    # surrogateescape: a byte that is no UTF-8 costs its own caption, not the whole table
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, row in read(file):
            place = f"{table.name}:{line}"
            if isinstance(row, dict):
                yield place, row
            else:
                problems.append(Problem(place, row))


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict | str]]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                row = json.loads(text)
                yield (
                    line,
                    row if isinstance(row, dict) else f"malformed JSON: {type(row).__name__}, expected {{...}}",
                )
            except (ValueError, RecursionError) as error:
                yield line, f"malformed JSON: {error}"


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict | str]]:
    reader = csv.reader(file, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, f"malformed CSV: {error}"
            continue
        if cells is None:
            return
        if not header:
            header = [cell.strip() for cell in cells]
        elif len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        elif cells:
            yield line, f"malformed CSV: {len(cells)} columns, the header has {len(header)}"


def first_few(problems: list[Problem], count: int = 3) -> str:
    """ ": path: reason; path: reason" for the end of an error line, or ''."""
    shown = "; ".join(f"{path}: {reason}" for path, reason in problems[:count])
    return " ".join(f": {shown}{' ...' if len(problems) > count else ''}".split()) if shown else ""


def print_problems(problems: list[Problem], count: int = 20) -> None:
    """The first of them on stderr, one a line."""
    for path, reason in problems[:count]:
        print("skipped", *f"{path}: {reason}".split(), file=sys.stderr)
    if len(problems) > count:
        print(f"... and {len(problems) - count:,} more", file=sys.stderr)


def summary(problems: list[Problem]) -> str:
    """'skipped 3 (2 image without caption, 1 bad picture)'."""
    kinds = Counter(reason.partition(":")[0] for _, reason in problems)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return f"skipped {len(problems):,} ({counts})" if counts else "skipped 0"

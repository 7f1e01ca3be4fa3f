"""Caption folders -> samples: which picture has which captions, and what had to be left out, by name.

Four forms, looked for in this order: a table (`captions.jsonl`, ...); `images/` beside `captions/`; a same-stem
`.txt` beside each picture; class folders, only with a template, because a folder name is no caption by itself.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.caption_collection import CaptionCollection
from shards.caption_tables import TABLES, read_table
from shards.folder_listing import by_key, key_of, list_files
from shards.problems import Problem
from toolkit.data.decoding import SUFFIXES
from toolkit.errors import UserError, check

MAX_TEXT_BYTES = 1_000_000


@dataclass(frozen=True)
class Sample:
    """A picture with its captions; `key`: its path below the folder without suffix, with forward slashes."""

    key: str
    picture: Path
    captions: tuple[str, ...]


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


def _read(folder: Path, rules: CaptionRules, need_pictures: bool) -> CaptionCollection:
    files = list_files(folder)
    table = next((name for name in TABLES if name in files), None)
    if rules.where and not table:
        raise UserError(f"--where needs a table, and {folder} holds none of {', '.join(TABLES)}")
    if table:
        if rules.class_template:
            raise UserError(f"--class_template is for class folders, but {folder} has captions in {table}; drop one")
        return _from_table(folder, table, files, rules, need_pictures)
    if (folder / "images").is_dir() and (folder / "captions").is_dir():
        pictures = by_key(files, SUFFIXES, "images/")
        return _from_texts(folder, pictures, by_key(files, (".txt",), "captions/"), need_pictures)
    pictures, texts = by_key(files, SUFFIXES), by_key(files, (".txt",))
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


def _from_texts(folder: Path, pictures: list, texts: list, need_pictures: bool) -> CaptionCollection:
    found = CaptionCollection()
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
        described = {key for key, _ in texts}
        bare = (path for key, path in found.pictures.items() if key not in described)
        found.problems += [Problem(path, "image without caption") for path in bare]
    return found


def _from_class_folders(pictures: list, template: str) -> CaptionCollection:
    found = CaptionCollection()
    for key, path in pictures:
        name = re.sub(r"[_-]", " ", PurePosixPath(path).parent.name)
        if not name:
            found.problems.append(Problem(path, "image without caption: it lies in no class folder"))
        elif found.add_picture(key, path, path):
            found.add_captions(key, [(path, template.replace("{}", name))])
    return found


def _from_table(
    folder: Path, table: str, files: list[str], rules: CaptionRules, need_pictures: bool
) -> CaptionCollection:
    found, named = CaptionCollection(), set()
    for row in read_table(folder / table, rules.where, rules.file_column, rules.caption_column):
        named.add(row.path)
        if row.reason:
            found.problems.append(Problem(row.place, row.reason))
        elif row.captions:
            if need_pictures and not (folder / row.path).is_file():
                found.problems.append(Problem(row.place, f"missing file: {row.path}"))
            elif found.add_picture(key_of(row.path), row.path, row.place):
                found.add_captions(key_of(row.path), [(row.place, text) for text in row.captions])
    if need_pictures:
        bare = (path for _, path in by_key(files, SUFFIXES) if path not in named)
        found.problems += [Problem(path, f"image without caption: not in {table}") for path in bare]
    return found

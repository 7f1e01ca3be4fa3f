"""Caption folders -> samples: which image has which captions, and what had to be left out, by name.

Four forms, looked for in this order: a table (`captions.jsonl`, ...); `images/` beside `captions/`; a same-stem
`.txt` or `.json` beside each image, and where it has both the `.txt`; class folders, only with a template, because a
folder name is no caption by itself.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.caption_folder.collection import CaptionCollection, is_listable
from shards.caption_folder.files import CAPTION_SUFFIXES, read_caption_file
from shards.caption_folder.listing import by_key, key_of, list_files
from shards.caption_folder.tables import TABLES, read_table
from shards.problems import Problem
from toolkit.data.decoding import SUFFIXES
from toolkit.errors import UserError, check


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its captions."""

    key: str
    """The image's path without suffix."""
    image: str
    """Path relative to the folder, with forward slashes."""
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

    Raises UserError if the folder is missing, or holds no images, no captions or no row that `where` wants.
    """
    found = _read(folder, rules, need_images=True)
    samples = []
    for key, captions in found.take_captions():
        if not is_listable(key):
            found.problems.append(Problem(repr(key), "bad file name: control or undecodable characters"))
        elif captions and key in found.images:
            samples.append(Sample(key, found.images[key], captions))
    return samples, found.problems


def find_captions(folder: Path, rules: CaptionRules) -> tuple[dict[str, tuple[str, ...]], list[Problem]]:
    """Key -> captions, sorted by key, of a folder that need not hold images; keys as of `find_samples`."""
    found = _read(folder, rules, need_images=False)
    return {key: captions for key, captions in found.take_captions() if captions}, found.problems


def _read(folder: Path, rules: CaptionRules, need_images: bool) -> CaptionCollection:
    files = list_files(folder)
    table = next((name for name in TABLES if name in files), None)
    if rules.where and not table:
        raise UserError(f"--where needs a table, and {folder} holds none of {', '.join(TABLES)}")
    if table and rules.class_template:
        raise UserError(f"--class_template is for class folders, but {folder} has captions in {table}; drop one")
    if table:
        return _from_table(folder, table, files, rules, need_images)
    trees = (folder / "images").is_dir() and (folder / "captions").is_dir()
    found = CaptionCollection()
    for key, path in by_key(files, SUFFIXES, "images/" if trees else ""):
        found.add_image(key, path, path)
    if need_images and not found.images:
        raise UserError(f"{folder} holds {len(files):,} files but no image ({', '.join(SUFFIXES)})")
    suffixes = CAPTION_SUFFIXES if trees else _suffixes_in_use(files, found, rules, need_images)
    if suffixes:
        texts = [by_key(files, (suffix,), "captions/" if trees else "") for suffix in suffixes]
        _add_caption_files(found, folder, texts, rules, need_images)
    elif rules.class_template:
        _add_class_names(found, rules.class_template)
    else:
        raise UserError(
            f"{folder} holds {len(found.images):,} images but no captions: neither a table ({', '.join(TABLES)}) "
            f"nor {' or '.join(CAPTION_SUFFIXES)} files of the same name. If its folders are classes, "
            "add --class_template 'a photo of {}'"
        )
    return found


def _suffixes_in_use(
    files: list[str], found: CaptionCollection, rules: CaptionRules, need_images: bool
) -> tuple[str, ...]:
    """Those of the caption files that stand beside an image, or () if none does; alone, all of them may be captions.

    A .json is most often something else, and only said to lack its image where others have theirs.
    """
    alone = not need_images and not rules.class_template
    for count in range(len(CAPTION_SUFFIXES), 0, -1):
        suffix = CAPTION_SUFFIXES[count - 1]
        counts = alone and (suffix == ".txt" or not found.images)
        if any(counts or key in found.images for key, _ in by_key(files, (suffix,))):
            return CAPTION_SUFFIXES[:count]
    return ()


def _add_caption_files(
    found: CaptionCollection,
    folder: Path,
    texts: list[Iterator[tuple[str, str]]],
    rules: CaptionRules,
    need_images: bool,
) -> None:
    """`texts`: (key, path) pairs suffix by suffix; a key that an earlier suffix has is left to it."""
    described: set[str] = set()
    for pairs in texts:
        mine = set()
        for key, path in pairs:
            if key in described:
                continue
            mine.add(key)
            try:
                if need_images and key not in found.images:
                    raise UserError(f"caption without image: no {key} with {', '.join(SUFFIXES)}")
                found.add_captions(key, read_caption_file(folder, path, rules.caption_column))
            except UserError as error:
                found.problems.append(Problem(path, str(error)))
        described |= mine
    if need_images:
        bare = (path for key, path in found.images.items() if key not in described)
        found.problems += [Problem(path, "image without caption") for path in bare]


def _add_class_names(found: CaptionCollection, template: str) -> None:
    for key, path in found.images.items():
        name = re.sub(r"[_-]", " ", posixpath.basename(posixpath.dirname(path)))
        if name:
            found.add_captions(key, [(path, template.replace("{}", name))])
        else:
            found.problems.append(Problem(path, "image without caption: it lies in no class folder"))


def _from_table(
    folder: Path, table: str, files: list[str], rules: CaptionRules, need_images: bool
) -> CaptionCollection:
    found, named = CaptionCollection(), set()
    listed = dict(zip(files, files, strict=True))  # so that samples share the listing's strings
    for row in read_table(folder / table, rules.where, rules.file_column, rules.caption_column):
        path = listed.get(row.path, row.path)
        named.add(path)
        if row.reason:
            found.problems.append(Problem(row.place, row.reason))
        elif row.captions:
            # a table may name what the listing leaves out: hidden files, another way to a folder
            if need_images and path not in listed and not os.path.isfile(folder / path):
                found.problems.append(Problem(row.place, f"missing file: {path}"))
            elif found.add_image(key := key_of(path), path, row.place):
                found.add_captions(key, [(row.place, text) for text in row.captions])
    if need_images:
        bare = (path for path in files if path not in named and path.lower().endswith(SUFFIXES))
        found.problems += [Problem(path, f"image without caption: not in {table}") for path in bare]
    return found

"""Captions and images by key, as they are found: captions cleaned, equal ones counted once, faults named."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shards.problems import Problem
from toolkit.errors import UserError

MAX_CHARACTERS, MAX_CAPTIONS = 10_000, 1000
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")
"""Unicode's categories Cc and Cs, which are closed; a search is ten times as fast as asking for every character's."""
_UNLISTABLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


@dataclass
class CaptionCollection:
    """What a folder holds, before images and captions are matched; paths relative to the folder."""

    images: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _captions: dict[str, list[str]] = field(default_factory=dict)

    def add_image(self, key: str, path: str, place: str) -> bool:
        """False, and a problem at `place`, if the key belongs to another image already."""
        first = self.images.setdefault(key, path)
        if first != path:
            self.problems.append(Problem(place, f"same name: {path} and {first} differ only in the suffix"))
        return first == path

    def add_captions(self, key: str, texts: Iterable[tuple[str, object]]) -> None:
        """`texts`: (place, text) pairs; bad ones become problems, equal ones of a key count once."""
        kept = self._captions.setdefault(key, [])
        for place, text in texts:
            try:
                kept.append(clean_caption(text))
            except UserError as error:
                self.problems.append(Problem(place, str(error)))

    def take_captions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every key that captions were looked for, sorted, with its distinct ones as found; memory holds them once."""
        for key in sorted(self._captions):
            captions = tuple(dict.fromkeys(self._captions.pop(key)))
            if len(captions) > MAX_CAPTIONS:  # their vectors would outgrow a member of a tar
                self.problems.append(Problem(key, f"too many captions: {len(captions):,}, the first 1,000 are kept"))
            yield key, captions[:MAX_CAPTIONS]


def is_listable(name: str) -> bool:
    """Whether the name can stand in a list of names: no control, line-separating or undecodable character."""
    return not _UNLISTABLE.search(name)


def clean_caption(text: object) -> str:
    """NFC, every run of whitespace one space. UserError (the reason alone) for what is no usable caption."""
    if not isinstance(text, str | None):
        raise UserError(f"caption is no text: found {type(text).__name__}")
    caption = " ".join(unicodedata.normalize("NFC", (text or "").removeprefix("\ufeff")).split())
    if not caption:
        raise UserError("empty caption")
    if len(caption) > MAX_CHARACTERS:
        raise UserError(f"caption too long: {len(caption):,} characters, at most {MAX_CHARACTERS:,}")
    if bad := _CONTROL.search(caption):
        code = ord(bad[0])
        if code >= 0xD800:  # bytes that are no UTF-8 arrive as lone surrogates, read with `surrogateescape`
            raise UserError(f"not UTF-8: 0x{code & 0xFF:02X} in the caption")
        raise UserError(f"control character: U+{code:04X} in the caption")
    return caption

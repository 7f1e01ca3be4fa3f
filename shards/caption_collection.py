"""Captions and pictures by key, as they are found: captions cleaned, equal ones counted once, faults named."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from shards.problems import Problem
from toolkit.errors import UserError

MAX_CHARACTERS = 10_000


@dataclass
class CaptionCollection:
    """What a folder holds, before pictures and captions are matched; paths relative to the folder."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add_picture(self, key: str, path: str, place: str) -> bool:
        """False, and a problem at `place`, if the key belongs to another picture already."""
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
        if kind == "Cs":  # bytes that are no UTF-8 arrive as lone surrogates, read with `surrogateescape`
            raise UserError(f"not UTF-8: 0x{ord(character) & 0xFF:02X} in the caption")
        if kind == "Cc":
            raise UserError(f"control character: U+{ord(character):04X} in the caption")
    return caption

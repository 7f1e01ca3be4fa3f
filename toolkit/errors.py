"""The one exception that a command shows to its user as a single line, and the words such lines are made of."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do. Never a traceback."""

    exit_code = 1


class Diverged(UserError):
    """Training has left the range in which it can recover by itself."""

    exit_code = 3


class NotSaved(UserError):
    """A checkpoint could not be written; the earlier ones are untouched."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """ "; did you mean 'X'?" for the valid word closest to `word`, or ''."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else ""


def named_in(joined: str) -> tuple[str, ...]:
    """'a, b' -> ('a', 'b')."""
    return tuple(name.strip() for name in joined.split(",") if name.strip())


def check(condition: bool, name: str, value: object, allowed: str) -> None:
    """Range check for options: a UserError that names the option, its value and what is allowed."""
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {allowed}")

"""Where shards may lie: in a local folder, or at an address of one of a few kinds. Nothing else is ever followed."""

import re
from typing import TypeGuard
from urllib.parse import urlsplit

from toolkit.errors import UserError

PACKAGES = {"https": "aiohttp", "http": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
"""The kinds of address, and the package with which fsspec reads them."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts for which plain http will do: nobody can sit in between and change manifest and hashes together."""
MAY_BE_SECRET = "@?#"
"""Without one of these an address can hold no password and no signature."""


def is_address(location: object) -> TypeGuard[str]:
    """Whether `location` is no folder but goes through `check_address`."""
    return isinstance(location, str) and "://" in location


def check_address(location: str) -> str:
    """The address of a folder, its last slash removed. Raises UserError, which repeats nothing that may be secret."""
    kind = location.partition("://")[0].lower()
    if any(mark in location for mark in MAY_BE_SECRET):
        raise UserError(
            f"the address of the shards ({kind if kind in PACKAGES else '...'}://...) must not hold a user, password, "
            "query or fragment (no '@', '?', '#'); credentials belong in the environment or in the storage's own files "
            "(~/.aws, gcloud's, ~/.netrc)"
        )
    try:
        host, port = urlsplit(location).hostname, urlsplit(location).port
    except ValueError:  # no port number, no IPv6 address
        host, port = None, None
    odd = _is_pattern(location) or re.search(r"[`\\\s]", location) or not location.isprintable()
    if kind not in PACKAGES or odd or not host or (port and kind in ("s3", "gs")):
        raise UserError(f"no shard folder at {_shown(location)}; {what_to_pass(location)}")
    if kind == "http" and host not in LOOPBACK:
        raise UserError(f"{location}: over http, manifest and hashes may come from anybody; pass an https:// address")
    return kind + location[len(kind) :].rstrip("/")


def what_to_pass(location: str) -> str:
    """What to write instead of `location`, where no shards are.

    Commands and patterns, which webdataset would run or expand, are only ever names of folders here.
    """
    if is_address(location) or re.match(r"[A-Za-z][\w+.-]*:", location) or _is_pattern(location):
        return (
            "pass a local folder or an https://, s3:// or gs:// address: commands, patterns and other addresses are "
            "not followed"
        )
    return "build one with python -m shards.create"


def _is_pattern(location: str) -> bool:
    return bool(re.search(r"[{}*$]|::", location.replace("[::1]", "")))


def _shown(location: str) -> str:
    return location if location.isprintable() else repr(location)

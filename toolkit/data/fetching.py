"""One file from https, s3 or gs to this disk, through fsspec, with its SHA-256."""

import hashlib
import os
import re
import time
from pathlib import Path
from typing import BinaryIO

from toolkit.data.addresses import LOOPBACK, PACKAGES
from toolkit.errors import UserError

BLOCK = 2**23
PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each new try after an error that may pass."""
CONNECT, READ = 30, 60
"""Seconds without a connection, or without a byte, after which a try has failed."""


class Incomplete(OSError):
    """Fewer bytes came than stand there."""


def fetch(address: str, path: Path, least: int, most: int) -> str:
    """Write the `least` to `most` bytes at `address` to `path`; returns their SHA-256.

    Raises UserError in one line: at once if there is no such file, no right to it or too much of it, for anything else
    after as many new tries as PAUSES. What was written by then stays; the caller removes it.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return _fetch_once(address, path, least, most)
        except UserError:
            raise
        except Exception as error:  # each storage has its own kinds
            pause = next(pauses, None)
            if pause is None or _is_lasting(error):
                raise UserError(f"{address} cannot be fetched ({_reason(error)})") from None
        time.sleep(pause)


def _fetch_once(address: str, path: Path, least: int, most: int) -> str:
    digest, size = hashlib.sha256(), 0
    with _open_remote(address) as source, _OwnFile(path) as file:
        while block := source.read(BLOCK):
            size += len(block)
            if size > most:
                raise UserError(f"{address} holds more than the {most:,} bytes that belong there; it was replaced")
            digest.update(block)
            file.write(block)
    if size < least:
        raise Incomplete(f"{size:,} of {least:,} bytes came")
    return digest.hexdigest()


class _OwnFile:
    """A local file whose errors are told apart from the network's: another try would not help."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_OwnFile":
        try:
            self._file = self.path.open("wb")
        except OSError as error:
            raise self._refused(error) from None
        return self

    def write(self, block: bytes) -> None:
        try:
            self._file.write(block)
        except OSError as error:
            raise self._refused(error) from None

    def __exit__(self, *error: object) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as failure:
            raise self._refused(failure) from None
        finally:
            self._file.close()

    def _refused(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path} ({error.strerror}); make room there or set TEXT_GAN_CACHE")


def _open_remote(address: str) -> BinaryIO:
    """A stream from the first byte on. A new connection each time: data workers are forked, connections cannot be."""
    kind = address.partition("://")[0]
    try:
        import fsspec

        fsspec.get_filesystem_class(kind)
    except ImportError:
        raise UserError(f"{address} needs the package {PACKAGES[kind]}: pip install {PACKAGES[kind]}") from None
    if kind in ("s3", "gs"):
        storage = fsspec.filesystem(kind, skip_instance_cache=True, use_listings_cache=False)
        return storage.open(address, "rb", block_size=BLOCK, cache_type="none")
    storage = fsspec.filesystem(kind, client_kwargs=_http_client(kind), skip_instance_cache=True)
    return storage.open(address, "rb", block_size=0, size=1)  # a stream has no use for the size; 0 would ask for it


def _http_client(kind: str) -> dict:
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=READ)
    return {"timeout": patience, "trust_env": kind == "https", "trace_configs": [trace]}  # proxies, ~/.netrc


async def _check_redirect(session: object, context: object, redirect) -> None:
    """Not from https to http, where anybody could answer; only this machine may name itself."""
    target = redirect.url.join(type(redirect.url)(redirect.response.headers["Location"]))
    local = redirect.url.scheme == "http" and target.scheme == "http" and target.host in LOOPBACK
    if target.scheme != "https" and not local:
        raise UserError(f"{redirect.url.origin()} redirects to {target.scheme}://{target.host}, which is not followed")


def _is_lasting(error: Exception) -> bool:
    status = getattr(error, "status", 0)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    return refused or isinstance(error, FileNotFoundError | PermissionError)


def _reason(error: Exception) -> str:
    """In one line, and without the query of any address in it: redirects lead to signed ones."""
    text = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
    return re.sub(r"\?[^\s'\"]*", "", " ".join(text.split()))[:300]

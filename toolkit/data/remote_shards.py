"""Shards at an https://, s3:// or gs:// address: fetched whole when first read, verified, kept in a bounded cache."""

import hashlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from toolkit.data.addresses import check_address, is_address
from toolkit.data.fetching import fetch
from toolkit.data.shard_cache import CachedSet, cache_bound, cache_root, gigabytes
from toolkit.data.shard_format import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.data.tar_index import INDEX_COLUMNS
from toolkit.errors import UserError

MAX_NPY_HEADER = 2**16


def open_shards(location: str | Path) -> ShardSet:
    """The shards in a local folder or at an address. Raises UserError."""
    return RemoteShardSet(location) if is_address(location) else ShardSet(location)


class RemoteShardSet(ShardSet):
    """A shard folder at an address; `folder` is what has been fetched of it.

    Opening fetches manifest and index; each other file is fetched by the process that first reads it. What is at hand
    is not fetched again, by whatever process or run. Raises UserError for a file that cannot be fetched, or is not the
    one whose SHA-256 the manifest gives; the manifest itself is as trustworthy as the connection.
    """

    def __init__(self, address: str) -> None:
        self.address = check_address(address)
        data = _fetch_manifest(self.address)
        manifest = Manifest.parse(data, f"{self.address}/{MANIFEST_NAME}")
        self._expected = _sizes_and_hashes(manifest, self.address)
        self.cache = CachedSet(cache_root(), hashlib.sha256(data).hexdigest(), data)
        self._failed: dict[str, str] = {}
        self.cache.reserve(sum(most for _, most, _ in self._expected.values()), cache_bound())
        self.local_path(manifest.index_name)
        super().__init__(self.cache.folder)
        self._announce()

    def fetch_all(self) -> None:
        """Every file, whether it is read or not. Raises UserError."""
        for name in self._expected:
            self.local_path(name)

    def local_path(self, name: str) -> Path:
        """A file of the manifest on this disk, fetched now if need be. Raises UserError, the second time at once."""
        if name in self._failed:
            raise UserError(self._failed[name])
        least, most, _ = self._expected[name]
        try:
            return self.cache.path(name, most if least == most else None, lambda path: self._fetch(name, path))
        except UserError as error:
            self._failed[name] = str(error)
            raise

    def _fetch(self, name: str, path: Path) -> None:
        address = _address_of(self.address, name)
        least, most, expected = self._expected[name]
        found = fetch(address, path, least, most)
        if found != expected:
            raise UserError(
                f"{address} has SHA-256 {found}, its manifest says {expected}: damaged or replaced; nothing of it was "
                "kept, upload the shards again"
            )

    def _open_file(self, name: str) -> io.FileIO:
        return self.local_path(name).open("rb", buffering=0)

    def _check_sizes(self) -> None:
        """Each file is checked when it is fetched."""

    def _announce(self) -> None:
        files = self.manifest.files
        missing = [file.bytes for file in files if not self.cache.has(file.name, file.bytes)]
        if missing and os.environ.get("RANK", "0") == "0":
            what = f"{len(missing)} of {len(files)} files ({gigabytes(sum(missing))}) of {self.address}"
            print(f"data: {what} will be fetched into {self.folder} when first read", file=sys.stderr)


def read_manifest(location: str | Path) -> Manifest:
    """Of a local folder or an address, without opening the rest. Raises UserError."""
    if not is_address(location):
        return Manifest.load(Path(location))
    address = check_address(location)
    return Manifest.parse(_fetch_manifest(address), f"{address}/{MANIFEST_NAME}")


def _fetch_manifest(address: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MANIFEST_NAME)
        fetch(_address_of(address, MANIFEST_NAME), path, 1, MAX_MANIFEST_BYTES)
        return path.read_bytes()


def _address_of(address: str, name: str) -> str:
    """`name` may hold anything but slashes; in a URL '?' and '#' would end it."""
    return f"{address}/{quote(name) if address.startswith('http') else name}"


def _sizes_and_hashes(manifest: Manifest, address: str) -> dict[str, tuple[int, int, str]]:
    """(least bytes, most bytes, SHA-256) by name. Raises UserError if a hash is none."""
    rows = manifest.samples * len(INDEX_COLUMNS) * 8
    expected = {file.name: (file.bytes, file.bytes, file.sha256) for file in manifest.files}
    expected[manifest.index_name] = (rows, rows + MAX_NPY_HEADER, manifest.index_sha256)
    for name, (_, _, sha256) in expected.items():
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UserError(f"{address}/{MANIFEST_NAME} gives no SHA-256 for {name!r}; build the shards again")
    return expected

"""Features of images and vectors of prompts, kept on disk: they are mostly those of the last time.

A file's name is the hash of what its features are a function of: the images' fingerprint and the extractor's key. It
is read back only if every byte is as it was written. That keeps out damage and mix-ups, but no forger who may write in
the folder; nothing in it is ever executed, whoever wrote it.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from toolkit.data.shard_cache import GIGABYTE, cache_root, gigabytes
from toolkit.durable import flush_to_disk

FORMAT_VERSION = 1
ENTRY = "features"
"""Of the metadata, and the only one: the order of several is random."""
NAME = r"[0-9a-f]{64}\.safetensors"
STAGED = r"\.[0-9a-f]{64}\.safetensors\.\d+-[0-9a-f]{8}\.tmp"
BOUND = 10 * GIGABYTE
"""Most bytes of the cache; 50,000 images take 0.4 GB with one layer of 2,048 features."""
ABANDONED = 24 * 3600
"""Seconds after which a file that is still being written is what a kill has left."""


def default_folder(kind: str = "features") -> Path:
    """TEXT_GAN_CACHE/features, or text-gan-toolkit/features in the user's cache folder."""
    root = cache_root()
    return root / kind if os.environ.get("TEXT_GAN_CACHE") else root.with_name(kind)


class FeatureCache:
    """Features by (fingerprint, extractor key) in one folder, shared by all processes; the least recently used go.

    It never raises: what cannot be read or written costs one line on stderr, and the caller computes.
    """

    def __init__(self, folder: Path | None, bound: int = BOUND) -> None:
        """`folder` None: nothing is kept. `bound`: most bytes in the folder."""
        self.folder, self.bound = folder, bound

    def load(self, fingerprint: str | None, key: str, taps: tuple[str, ...]) -> dict[str, Tensor] | None:
        """float32 [N, C] for each of `taps`; None if they are not there, or not as they were stored."""
        if self.folder is None or fingerprint is None:
            return None
        path = self._path(fingerprint, key)
        try:
            if path.stat().st_size > self.bound or not path.is_file():
                raise ValueError("no file of this cache")
            features = _parse(path.read_bytes(), fingerprint, key)
        except FileNotFoundError:
            return None
        except Exception as error:  # of a damaged file: SafetensorError, ValueError, TypeError, MemoryError, ...
            _tell(f"{path} is not used ({_in_short(error)}); its features are computed anew")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used last, evicted last
        return {tap: features[tap] for tap in taps} if features.keys() >= set(taps) else None

    def store(self, fingerprint: str | None, key: str, features: dict[str, Tensor]) -> None:
        """Keep float32 [N, C] by tap, in place of what was there; of two processes at once the last one's stay."""
        if self.folder is None or fingerprint is None:
            return
        path = self._path(fingerprint, key)
        staged = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            data = _serialised(features, fingerprint, key)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data), path)
            try:
                with staged.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                staged.replace(path)
                flush_to_disk(self.folder)
            finally:
                staged.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            _tell(f"features are not kept in {self.folder} ({_in_short(error)})")

    def _path(self, fingerprint: str, key: str) -> Path:
        assert self.folder is not None  # both callers have left otherwise
        name = hashlib.sha256(json.dumps([fingerprint, key]).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def _make_room(self, size: int, path: Path) -> None:
        """Evict what was used least recently until `size` bytes more fit. Raises ValueError, with nothing evicted."""
        held = sorted(self._files(path))
        over = size + sum(bytes_ for _, bytes_, _ in held) - self.bound
        short = size - shutil.disk_usage(path.parent).free
        evictable = sum(bytes_ for _, bytes_, _ in held)
        if max(over, short) > evictable:
            limit = f"it may hold {gigabytes(self.bound)}" if over > evictable else "the disk is full"
            raise ValueError(f"{gigabytes(size)} do not fit, {limit}")
        for _, bytes_, old in held:
            if max(over, short) <= 0:
                break
            old.unlink(missing_ok=True)
            over, short = over - bytes_, short - bytes_

    def _files(self, path: Path) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of what may go. By the form of their names: whatever else lies here stays."""
        found = []
        for other in path.parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # evicted or renamed just now
                status = other.stat()
                finished = re.fullmatch(NAME, other.name) and other != path
                abandoned = re.fullmatch(STAGED, other.name) and time.time() - status.st_mtime > ABANDONED
                if finished or abandoned:
                    found.append((status.st_mtime, status.st_size, other))
        return found


def _serialised(features: dict[str, Tensor], fingerprint: str, key: str) -> bytes:
    """The file of these features, a function of the arguments. Raises ValueError for features that are not finite."""
    tensors = {tap: features[tap].detach().to("cpu", torch.float32).contiguous() for tap in sorted(features)}
    for tap, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"features of {tap} hold NaN or infinity")
    about = {
        "version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "key": key,
        "count": len(next(iter(tensors.values()))),
        "sha256": {tap: hashlib.sha256(tensor.numpy().data).hexdigest() for tap, tensor in tensors.items()},
    }
    return save(tensors, {ENTRY: json.dumps(about)})


def _parse(data: bytes, fingerprint: str, key: str) -> dict[str, Tensor]:
    """Raises ValueError, or whatever safetensors does, unless writing the features again gives the very same bytes."""
    features = load(data)
    if not features or any(tensor.dtype != torch.float32 or tensor.ndim != 2 for tensor in features.values()):
        raise ValueError("it holds other things than features")
    if _serialised(features, fingerprint, key) != data:
        raise ValueError("it is damaged, or of other images or another extractor")
    return features


def _in_short(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def _tell(line: str) -> None:
    print(f"feature cache: {line}", file=sys.stderr)

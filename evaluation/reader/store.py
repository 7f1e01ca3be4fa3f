"""Taught readers, kept on disk: teaching takes minutes, and every score of a dataset should come from the same one."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from evaluation.reader.network import Reader
from evaluation.reader.teaching import Labelled, Taught, classes, teach
from toolkit.durable import write_whole

VERSION = 1
"""Of the network and of how it is taught: another one makes kept readers unused."""


def key_of(fingerprint: str, numbers: list[int], seed: int) -> str:
    """SHA-256 of what a reader is a function of: shards, the samples it is taught on, seed and version."""
    about = json.dumps([VERSION, torch.__version__.split("+")[0], fingerprint, numbers, seed])
    return hashlib.sha256(about.encode()).hexdigest()


def taught_or_kept(real: Labelled, key: str, seed: int, folder: Path | None, anew: bool = False) -> Taught:
    """The reader of this key: from `folder` if it is there, else taught now and kept. `folder` None: kept nowhere.

    What cannot be read or written costs one line on stderr. Raises UserError where nothing can be taught.
    """
    path = None if folder is None else folder / f"{key}.safetensors"
    if path is not None and path.is_file() and not anew:
        try:
            return _loaded(path, real)
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            print(f"{path} is not used ({' '.join(str(error).split())[:200]}); taught anew", file=sys.stderr)
    found = teach(real, seed)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save({name: value.contiguous() for name, value in found.reader.state_dict().items()}))
        except OSError as error:
            print(f"the reader is not kept: {path}: {error.strerror}", file=sys.stderr)
    return found


def _loaded(path: Path, real: Labelled) -> Taught:
    known = classes(real.captions)
    tensors = load(path.read_bytes())
    side = min(64, real.images.shape[-1])
    reader = Reader(side, len(known), real.vectors.shape[1])
    reader.load_state_dict(tensors)
    return Taught(reader.to(memory_format=torch.channels_last).eval(), known)

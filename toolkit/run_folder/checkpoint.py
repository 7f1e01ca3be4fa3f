"""The run folder's checkpoints: staged, hashed, renamed; no pickle; the newest valid one is the latest.

ckpt_0010000/
    generator.safetensors    the averaged G with its config and encoder identity: enough to generate
    generator_ema_5kimg.safetensors    likewise for each average of ema_profiles
    networks.safetensors     G and D in training
    optimizers.safetensors   Adam's moments
    state.json               step, position in the data, scaler, EMA counter, config, data fingerprint
    manifest.json            size and SHA-256 of the files above, written last
"""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.durable import file_sha256, flush_to_disk
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import Diverged, NotSaved, UserError
from toolkit.networks.architecture import ModelConfig, as_made

FORMAT_VERSION = 2
READABLE = (1, 2)
"""Format 1 had no adaptive state and no count of rollbacks."""
GENERATOR, NETWORKS, OPTIMIZERS = "generator.safetensors", "networks.safetensors", "optimizers.safetensors"
STATE, MANIFEST = "state.json", "manifest.json"
PROFILE = re.compile(r"generator_(ema_\d+(?:\.\d+)?kimg)\.safetensors")
"""Files of further averages: as many as a run has profiles, so their names stand in the manifest alone."""
MAIN_AVERAGE = "main"


class GeneratorFile(NamedTuple):
    """Content of generator.safetensors, or of another average's file."""

    tensors: dict[str, Tensor]
    config: ModelConfig
    identity: EncoderIdentity
    step: int
    guided: bool = False
    """Whether the CLIP of `identity` was in G's loss: no judge of its images."""
    average: str = MAIN_AVERAGE
    """Or 'ema_5kimg', a profile."""


class Snapshot(NamedTuple):
    """Everything a checkpoint holds."""

    generator: GeneratorFile
    networks: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    state: dict
    """JSON."""
    profiles: Mapping[str, dict[str, Tensor]] = MappingProxyType({})
    """By name: the other averages, as `generator` in all else."""


def checkpoint_name(step: int) -> str:
    return f"ckpt_{step:07d}"


def save(run: Path, snapshot: Snapshot, keep: int, best: int | None = None) -> Path:
    """Write `run/ckpt_STEP`, then drop all but the newest `keep` (0: none) up to it and step `best`. Returns its path.

    Everything is written into a hidden folder beside it, flushed to the disk and renamed: a kill or a full disk leaves
    the earlier checkpoints whole. Raises NotSaved if the disk is full or not writable, Diverged if a weight is not
    finite.
    """
    final = run / checkpoint_name(snapshot.generator.step)
    staged = run / f".tmp-{final.name}"
    _refuse_non_finite(snapshot.generator.tensors, snapshot.networks, *snapshot.profiles.values())
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        _save_generator(snapshot.generator, staged / GENERATOR)
        for name, tensors in snapshot.profiles.items():
            _save_generator(snapshot.generator._replace(tensors=tensors, average=name), staged / profile_file(name))
        save_file(snapshot.networks, staged / NETWORKS)
        save_file(snapshot.optimizers, staged / OPTIMIZERS)
        (staged / STATE).write_text(json.dumps(snapshot.state, indent=1) + "\n", encoding="utf-8")
        files = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in staged.iterdir()}
        manifest = {"version": FORMAT_VERSION, "files": files}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in staged.iterdir():
            path.chmod((staged / MANIFEST).stat().st_mode)  # safetensors writes for its owner alone
        for path in [*staged.iterdir(), staged]:
            flush_to_disk(path)
        aside = run / f".old-{final.name}"
        if final.exists():  # the same step, saved by an earlier life of this run; `tidy` brings it back after a kill
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        staged.rename(final)
        flush_to_disk(run)
        shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            tidy(run)  # also brings back the same step's earlier save, if it was already set aside
        raise NotSaved(f"cannot save {final}: {error}; earlier checkpoints are untouched") from None
    _prune(run, keep, snapshot.generator.step, best)
    return final


def tidy(run: Path) -> None:
    """Put right what a kill while saving has left. Only for who holds the run's lock."""
    for half_written in run.glob(".tmp-ckpt_*"):
        shutil.rmtree(half_written, ignore_errors=True)
    for aside in run.glob(".old-ckpt_*"):
        final = run / aside.name.removeprefix(".old-")
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def load(folder: Path) -> Snapshot:
    """Raises UserError naming the file if anything is missing or changed."""
    problem = find_problem(folder)
    if problem:
        raise UserError(
            f"checkpoint {folder}: {problem}; choose another one (--resume_from latest finds the newest valid)"
        )
    generator, name = load_generator_file(folder / GENERATOR), NETWORKS
    profiles = {key: load_generator_file(path).tensors for key, path in profiles_in(folder).items()}
    try:
        networks, name = load_file(folder / NETWORKS), OPTIMIZERS
        optimizers, name = load_file(folder / OPTIMIZERS), STATE
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, RecursionError) as error:  # as it was written, but not by this toolkit
        raise UserError(f"checkpoint {folder}: {name} is none of this toolkit's ({type(error).__name__})") from None
    return Snapshot(generator, networks, optimizers, state, profiles)


def recorded_options(folder: Path) -> dict:
    """The options that a checkpoint was trained with; {} where it cannot be read: `load` says why."""
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def load_generator_file(path: Path) -> GeneratorFile:
    """The averaged generator alone. Raises UserError if the file is absent, damaged or not ours."""
    if not path.is_file():
        raise UserError(f"no generator at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["toolkit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        identity = EncoderIdentity.from_json(about["encoder"])
        average, guided = str(about.get("average", MAIN_AVERAGE)), bool(about.get("guided"))
        config = ModelConfig(**as_made(about["config"]))
        return GeneratorFile(tensors, config, identity, int(about["step"]), guided, average)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no generator of this toolkit ({error!r})") from None


def find_problem(folder: Path, names: tuple[str, ...] | None = None) -> str:
    """'' if these files of the checkpoint (None: all of them) are as they were written, else what is wrong."""
    if not folder.is_dir():
        return "no such folder"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] not in READABLE:
            return f"format version {manifest['version']}, this toolkit reads {', '.join(map(str, READABLE))}"
        expected = manifest["files"]
        if names is None:  # of the manifest's own names none is opened that is no profile's
            names = (GENERATOR, NETWORKS, OPTIMIZERS, STATE, *filter(PROFILE.fullmatch, expected))
        for name in names:
            path = folder / name
            if name not in expected:
                return f"{name} is not among the files of its {MANIFEST}"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected[name]["bytes"] or file_sha256(path) != expected[name]["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST} is missing or damaged ({error})"
    return ""


def profile_file(name: str) -> str:
    """'ema_5kimg' -> 'generator_ema_5kimg.safetensors'."""
    return f"generator_{name}.safetensors"


def profiles_in(folder: Path) -> dict[str, Path]:
    """By name: the files of the averages beside the main one, shortest half-life first. Of a checkpoint that has been
    verified."""
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    names = [match[1] for match in map(PROFILE.fullmatch, files) if match]
    return {name: folder / profile_file(name) for name in sorted(names, key=lambda name: float(name[4:-4]))}


def copy_generator(source: Path, target: Path) -> None:
    """Write a generator's file as `target`, whole or not at all, noting in it which average it is.

    Raises UserError if `source` is none of ours or `target` cannot be written.
    """
    staged = target.with_name(f".{target.name}.tmp")
    try:
        _save_generator(load_generator_file(source), staged, note_main=True)
        staged.chmod(source.stat().st_mode)  # safetensors writes for its owner alone
        flush_to_disk(staged)
        staged.replace(target)
        flush_to_disk(target.parent)
    except (OSError, SafetensorError) as error:
        staged.unlink(missing_ok=True)
        raise UserError(f"cannot write {target} ({error}); make room or check the folder's rights") from None


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first, valid or not."""
    return sorted((path for path in run.glob("ckpt_*") if path.name[5:].isdigit()), key=lambda path: int(path.name[5:]))


def later_in(run: Path, folder: Path) -> list[Path]:
    """The run's checkpoints after `folder`; none if that is another run's."""
    own = [path.resolve() for path in checkpoints(run)]
    return own[own.index(folder.resolve()) + 1 :] if folder.resolve() in own else []


def newest_valid(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    passed_over: list[str] = []
    for folder in reversed(checkpoints(run)):
        problem = find_problem(folder)
        if not problem:
            return folder, passed_over
        passed_over.append(f"passing over {folder}: {problem}")
    return None, passed_over


def _save_generator(generator: GeneratorFile, path: Path, note_main: bool = False) -> None:
    """`note_main`: say which average it is even of the main one, of which a checkpoint's file says nothing."""
    about = {
        "config": dataclasses.asdict(generator.config),
        "encoder": dataclasses.asdict(generator.identity),
        "step": generator.step,
    }
    about |= {"guided": True} if generator.guided else {}
    if note_main or generator.average != MAIN_AVERAGE:
        about["average"] = generator.average
    save_file(generator.tensors, path, {"toolkit": json.dumps(about)})  # one entry: the order of several is random


def _refuse_non_finite(*groups: dict[str, Tensor]) -> None:
    for tensors in groups:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise Diverged(
                    f"not saved: the weight {name} is no longer finite. Training has diverged; resume from an earlier "
                    "checkpoint with lower learning rates"
                )


def _prune(run: Path, keep: int, step: int, best: int | None) -> None:
    """Later steps are not counted: they are another branch of the run, not the newest of this one."""
    mine = [folder for folder in checkpoints(run) if int(folder.name[5:]) <= step]
    for folder in mine[:-keep] if keep else []:
        if folder.name != checkpoint_name(-1 if best is None else best):
            shutil.rmtree(folder, ignore_errors=True)

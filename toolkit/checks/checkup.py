"""What the doctor can check without training: machine, data, encoder, run folder, trackers, memory."""

import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import torch

from toolkit.checks import memory
from toolkit.checks.memory import gib
from toolkit.config import ResolvedConfig
from toolkit.data.decoding import decode_image
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import check_open_clip_name
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.launching.launch import check_data
from toolkit.networks.models import Discriminator, Generator
from toolkit.run_folder import checkpoint
from toolkit.run_folder.lock import in_use
from toolkit.run_folder.trackers import has_wandb_key

OK, WARN, FAIL = "ok", "warn", "FAIL"
FEW_SAMPLES = 1000
"""Below this D learns its images by heart within hours (a rule of thumb, not a measurement)."""
CARD_EXTRA = 1.5 * memory.GIB
"""Rule of thumb for what the estimate leaves out: CUDA's context, cuDNN's workspaces, fragments."""
PROBE_BYTES = 2**24


class Report:
    """The doctor's findings, printed as they come by the main process."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.found: list[tuple[str, str, str]] = []

    def add(self, level: str, topic: str, text: str) -> None:
        self.found.append((level, topic, text))
        if self.shown:
            print(f"{level:<5} {topic:<10} {text}", flush=True)

    def of(self, level: str) -> list[str]:
        """The topics with a finding of this level."""
        return [topic for found, topic, _ in self.found if found == level]


def check_machine(report: Report, config: ResolvedConfig, accelerator) -> None:
    """Versions, processes against devices, the precision that is really used."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "accelerate")]
    report.add(OK, "software", ", ".join([f"Python {platform.python_version()}", *versions]))
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    used = f"{_count(accelerator.num_processes, 'process')} on {accelerator.device.type.upper()}"
    if cards and accelerator.device.type == "cpu":
        report.add(WARN, "processes", f"{used}, although there is a GPU; launch without ACCELERATE_USE_CPU or --cpu")
    elif cards > here:
        report.add(
            WARN, "processes",
            f"{used}: {cards - here} of {cards} GPUs stay idle; accelerate launch --multi_gpu --num_processes {cards}",
        )  # fmt: skip
    else:
        report.add(OK, "processes", f"{used}, {_count(cards, 'GPU')} on this machine, {os.cpu_count()} CPU cores")
    asked = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    found = accelerator.mixed_precision
    if asked != found:
        report.add(WARN, "precision", f"{asked} was asked for, training would be in fp32: {asked} needs a GPU")
    elif found == "bf16" and cards and not torch.cuda.is_bf16_supported(including_emulation=False):
        report.add(WARN, "precision", "this GPU only emulates bf16, slowly; --mixed_precision fp16")
    else:
        report.add(OK, "precision", "fp32" if found == "no" else f"{found}, with R1 and R2 in fp32")


def open_data(report: Report, config: ResolvedConfig, processes: int) -> ShardSet | None:
    """The shards if they can be trained on, else None and a FAIL."""
    if not config.data:
        report.add(FAIL, "data", "none given; pass --data SHARDS (made by python -m shards.create)")
        return None
    try:
        share, parts = config.per_process(processes)
        shards = open_shards(config.data)
        check_data(config, shards)
        for number in range(0, len(shards), max(1, len(shards) // 8)):
            decode_image(shards.read(number).image)
    except UserError as error:
        report.add(FAIL, "data", str(error))
        return None
    about, files = shards.manifest, _count(len(shards.manifest.shards), "shard")
    text = f"{len(shards):,} samples in {files}, {about.distinct_captions:,} distinct captions, {about.resolution} px"
    if len(shards) < FEW_SAMPLES:
        text += "; so few are learnt by heart: try --diffaug color,translation,cutout --adaptive_augment true"
    report.add(WARN if len(shards) < FEW_SAMPLES else OK, "data", text)
    epochs = config.total_steps * config.d_steps * config.batch / len(shards)
    report.add(
        OK, "batch",
        f"{config.batch} = {_count(processes, 'process')} x {parts} x {share // parts} images; "
        f"{config.total_steps:,} steps see each sample {epochs:,.1f} times",
    )  # fmt: skip
    return shards


def check_encoder(report: Report, identity: EncoderIdentity) -> None:
    """Which encoder made the embeddings, and whether prompts can be embedded here later."""
    fingerprint = hashlib.sha256(identity.probe_vectors.encode()).hexdigest()[:12]
    text = f"{identity.name}, {identity.dimension}-d, fingerprint {fingerprint}"
    if identity.name == HashingEncoder.name:
        report.add(
            WARN, "encoder", f"{text}: a stand-in that knows spelling, not meaning; for real use embed with CLIP"
        )
        return
    try:
        if importlib.util.find_spec("open_clip") is None:
            raise UserError("open_clip is not installed; prompts cannot be embedded here")
        check_open_clip_name(identity.name)
        report.add(OK, "encoder", f"{text}; open_clip knows it")
    except UserError as error:
        report.add(WARN, "encoder", f"{text}: {error}; training works, python -m toolkit.generate will not")


def check_folder(report: Report, config: ResolvedConfig) -> float:
    """Whether out_dir can be written, and holds what the run keeps. Leaves nothing behind. Returns bytes per second.

    Where out_dir does not exist yet, its nearest existing parent stands for it.
    """
    folder = Path(config.out_dir)
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    try:
        speed = _write_speed(place)
    except OSError as error:
        report.add(FAIL, "out_dir", f"{folder} cannot be written ({error.strerror}: {place}); choose another --out_dir")
        return math.inf
    if in_use(folder):
        report.add(FAIL, "out_dir", f"{folder} is in use by another run; stop that one or choose another --out_dir")
    report.add(OK, "out_dir", f"{folder} is writable, {speed / 1e6:,.0f} MB/s" + ("" if place == folder else " (new)"))
    size, free = checkpoint_bytes(config), shutil.disk_usage(place).free
    kept = config.keep + 2 if config.keep else -(-config.total_steps // config.ckpt_every) + 1
    missing = max(0, kept - len(checkpoint.checkpoints(folder)))
    text = f"{gib(free)} GiB free; {_count(kept, 'checkpoint')} of {gib(size)} GiB, {missing} of them to come"
    if free < missing * size:
        report.add(FAIL, "disk", f"{text}, need {gib(missing * size)}: make room, lower --keep or choose another disk")
    else:
        report.add(OK, "disk", text)
    return speed


def checkpoint_bytes(config: ResolvedConfig) -> int:
    """Size of a checkpoint: averaged Gs, G and D, Adam's two moments of each weight, all fp32; headers left out."""
    with torch.device("meta"):
        weights = [[*kind(config).parameters()] for kind in (Generator, Discriminator)]
    g, d = (4 * sum(weight.numel() for weight in of) for of in weights)
    return (1 + len(config.profiles)) * g + 3 * (g + d)


def check_trackers(report: Report, config: ResolvedConfig) -> None:
    """Whether what --track names can be used; a tracker that cannot is left out, and training goes on."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            report.add(
                WARN, "tracker", f"{name} is not installed: pip install {name}; without it the local logs remain"
            )
        elif name == "wandb" and config.wandb_mode == "online" and not has_wandb_key():
            report.add(WARN, "tracker", "wandb has no API key and would store the run offline; run wandb login")
        else:
            report.add(OK, "tracker", name if name != "wandb" else f"wandb, {config.wandb_mode}")


def check_memory(report: Report, config: ResolvedConfig, accelerator, tries: bool, encoder: str = "") -> None:
    """The estimate against the card of this process, or against the machine's memory for all its processes.

    `tries`: batch_gpu is 'auto', so a smaller micro-batch will be found.
    """
    found = memory.estimate(config, accelerator.num_processes, accelerator.mixed_precision, encoder)
    if accelerator.device.type == "cuda":
        room, where = torch.cuda.get_device_properties(accelerator.device).total_memory - CARD_EXTRA, "on the card"
    else:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        where = "of memory here for each process"
    most = found.most_images(int(room))
    text = f"about {gib(found.total())} GiB estimated at {found.micro_batch} images at once, {gib(room)} GiB {where}"
    if found.total() <= room:
        report.add(OK, "memory", f"{text}; room for about {most:,} images")
    elif tries and most:
        report.add(OK, "memory", f"{text}; batch_gpu auto will try what fits, about {most:,}")
    else:
        report.add(FAIL, "memory", f"{text}; {memory.explain_out_of_memory(config, accelerator.device)}")


def _write_speed(place: Path) -> float:
    """Bytes per second of a flushed file in a folder of its own below `place`, both removed again. Raises OSError."""
    with (
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder,
        open(Path(folder) / "probe", "wb") as file,
    ):
        start = time.perf_counter()
        file.write(os.urandom(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return PROBE_BYTES / (time.perf_counter() - start)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")

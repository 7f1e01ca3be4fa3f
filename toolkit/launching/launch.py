"""How a training run starts: the Accelerator, and refusals of launches known not to work."""

import contextlib
import ctypes
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, GradScalerKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, parse_flag_from_env

from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError
from toolkit.launching.processes import Processes

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)

BACK_ENDS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
             "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}  # fmt: skip
"""By the variable with which `accelerate launch` asks for them."""
LATER = 120
"""Seconds by which the GPUs' own timeout comes after the watchdog's (heartbeat.py), which knows who is missing."""
ONE_NETWORK = (
    "cannot train two networks against each other; launch with plain data parallelism (accelerate launch --multi_gpu)"
)


def start_accelerator(config: ResolvedConfig) -> Accelerator:
    """Device, process group, DDP, autocast and scaler; nothing else is Accelerate's here. Raises UserError."""
    _refuse_back_ends()
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    if precision == "fp16" and on_cpu:
        print("train: fp16 needs a GPU, which is not here: training in fp32 instead", file=sys.stderr)
        precision = "no"  # Accelerate would do the same without a word
    if precision == "bf16" and not on_cpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        print("train: this GPU only emulates bf16, slowly; --mixed_precision fp16 is made for it", file=sys.stderr)
    accelerator = Accelerator(
        mixed_precision=precision,
        kwargs_handlers=[
            # Buffers are batch-norm statistics and spectral norm's vectors: not broadcast, so that two forwards of D
            # before one backward never meet an in-place change.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout + LATER)),
            GradScalerKwargs(growth_interval=4000),  # counted per optimizer step, of which a training step has two
        ],
    )
    _refuse_unsupported(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are fixed
        torch.set_float32_matmul_precision("high")
    return accelerator


def join_processes(timeout: float = 1800) -> Processes:
    """Of a command that trains nothing: those `accelerate launch` or `torchrun` started with it, else it is alone.

    Raises UserError.
    """
    _refuse_back_ends()
    if os.environ.get("WORLD_SIZE", "1") == "1" and _asked_of_accelerate() == 1:
        return Processes(None, timeout)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout + LATER))])
    _refuse_unsupported(accelerator)
    return Processes(accelerator, timeout)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them: a CPU step then spends no time on page faults.

    Every activation is larger than malloc's threshold for a mapping of its own; measured 1.2 times as fast at 32 px.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(parameter, 2**30)


def check_data(config: ResolvedConfig, shards: ShardSet) -> None:
    """Refuse shards that do not fit the config, with the option to change."""
    manifest = shards.manifest
    if manifest.resolution != config.resolution:
        raise UserError(
            f"the shards in {config.data} are {manifest.resolution} px, resolution is {config.resolution}; pass "
            f"--resolution {manifest.resolution} or build shards with --size {config.resolution}"
        )
    if manifest.encoder.dimension != config.cond_dim:
        raise UserError(
            f"the embeddings in {config.data} are {manifest.encoder.dimension}-d, cond_dim is {config.cond_dim}; "
            f"pass --cond_dim {manifest.encoder.dimension}"
        )
    if config.pairs and manifest.distinct_captions > manifest.samples / 2:
        raise UserError(
            f"pairs: {config.data} has {manifest.distinct_captions:,} different captions for {manifest.samples:,} "
            "images, so that most have no partner; pass --pairs false"
        )
    weights = ("mismatch_weight", "g_mismatch_weight", "match_weight", "g_match_weight")
    if manifest.distinct_captions < 2 and any(getattr(config, name) for name in weights):
        raise UserError(
            f"all captions in {config.data} are equal: there are no others to tell them from; pass "
            f"{' '.join(f'--{name} 0' for name in weights)}"
        )


def _refuse_back_ends() -> None:
    """Before Accelerate looks for their packages, and also where it would pass over them (FSDP on CPUs)."""
    for variable, name in BACK_ENDS.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(f"{name} {ONE_NETWORK}")


def _refuse_unsupported(accelerator: Accelerator) -> None:
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(f"{accelerator.distributed_type.value} {ONE_NETWORK}")
    if str(accelerator.state.dynamo_plugin.backend.value).upper() != "NO":
        raise UserError(
            "Accelerate would compile D alone, which R1 cannot differentiate twice; launch with --dynamo_backend no "
            "and train with --compile default"
        )
    if accelerator.num_processes == 1 and _asked_of_accelerate() > 1:
        raise UserError(
            "accelerate launch --cpu starts one process whatever --num_processes says; for several on CPUs launch with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
        )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted > 1 and accelerator.num_processes == 1:
        raise UserError(
            f"{wanted} processes were launched but each believes it is alone (no GPU found); on CPUs launch with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
        )


def _asked_of_accelerate() -> int:
    """How many processes the command line of `accelerate launch` asks for, if that started this one; else 1."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # /proc is Linux only
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if any("accelerate" in word for word in words[:3]):
            return int(words[words.index("--num_processes") + 1])
    return 1

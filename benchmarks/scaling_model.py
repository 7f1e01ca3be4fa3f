"""What data-parallel training takes on N processes, from the step time of one: a model, not a measurement.

    step(N) = step(1) + what of the exchange is not hidden + waiting for the slowest

`python -m benchmarks.scaling_model --step_ms 12 --batch 64 --base_ch 64` prints a table. Its terms:

* exchange: all-reduce of D's and of G's fp32 gradients, 2 (N - 1) / N x bytes / bus bandwidth, the least that a ring
  can take (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"), and a
  latency per bucket (Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in
  MPICH"). DDP sends buckets of 25 MB, the first of 1 MB (Li et al. 2020, "PyTorch Distributed: Experiences on
  Accelerating Data Parallel Training").
* overlap: not measured; 0 and 1 are the bounds. At 1 all is hidden that fits into the backward passes, which make
  WINDOW of a step.
* waiting: each of the two exchanges of a step waits for the slowest of N, whose times vary independently and normally.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.integrate import quad
from scipy.stats import norm

from toolkit.command_line import run
from toolkit.errors import check
from toolkit.networks.architecture import EARLIER, ModelConfig
from toolkit.networks.models import Discriminator, Generator, count_parameters

COUNTS = (1, 8, 64, 256, 1024)
NETWORKS = {"d_scales": 2, **EARLIER}
"""Those that the published numbers are of, whatever the defaults of training."""
PER_MACHINE = 8
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
WINDOW = 0.5
"""Share of a step's FLOPs that lies in backward passes with gradients to exchange: 4 D of D's phase and 2 G of G's."""


@dataclass(frozen=True)
class Link:
    """What carries an all-reduce."""

    bandwidth: float
    """Bus bandwidth in bytes/s as nccl-tests define it: bytes x 2 (N - 1) / N / seconds."""
    latency: float
    """Seconds of the smallest all-reduce; between machines, of two of them."""
    per_doubling: float = 0.0
    """Seconds that each doubling of the machines adds: NCCL's trees are as deep as the logarithm."""


INSIDE = {"nvlink": Link(370e9, 20e-6), "pcie": Link(8e9, 45e-6)}
"""Between the GPUs of a machine. NVLink: 450 GB/s is the line rate of an H100, 370 are usable (NVIDIA/nccl-tests#212);
latency assumed. PCIe: half of what a 3.0 x16 slot (T4) carries, an assumption; 43 us at 8 bytes on eight GPUs on PCIe
(NVIDIA/nccl#1530)."""
BETWEEN = {
    "infiniband": Link(8 * 50e9 * 0.96, 47e-6, 17e-6),
    "ethernet100": Link(12.5e9 * 0.8, 60e-6, 20e-6),
    "ethernet25": Link(3.1e9 * 0.8, 60e-6, 20e-6),
}
"""Between machines of eight, all adapters of a machine together. InfiniBand: 8 x 400 Gb/s, of which 96 % were reached
with 4 x 200 (NVIDIA/nccl-tests#119); 47 us are assumed; a doubling of the machines adds what NCCL's own tuning counts
for a tree, 2 x 8.5 us (src/graph/tuning.cc). Ethernet: one port over TCP, four fifths of its rate and its latencies
assumed.

Optimistic for buckets of 25 MB: on two machines of eight, 298 us were measured where this gives 217 (33 MB,
NVIDIA/nccl#1244), for the full bandwidth is reached at larger sizes only."""


@dataclass(frozen=True)
class ScalingOptions:
    """Predict the speed of training on 1 to 1,024 GPUs from the step time of one."""

    step_ms: float
    """Milliseconds of a step of one process, measured."""
    batch: int = 64
    """Images per process and step."""
    base_ch: int = 64
    """Width of the networks, as in training."""
    resolution: int = 128
    """Side of the images in pixels, as in training."""
    inside: Literal["nvlink", "pcie"] = "nvlink"
    """What joins the eight GPUs of a machine."""
    network: Literal["infiniband", "ethernet100", "ethernet25"] = "infiniband"
    """What joins the machines: 8 x 400 Gb/s InfiniBand, or one Ethernet port of 100 or 25 Gb/s."""
    variation: float = 0.02
    """Standard deviation of one process's step times as a share of their mean, without the steps that have R1."""

    def __post_init__(self) -> None:
        check(self.step_ms > 0, "--step_ms", self.step_ms, "above 0")
        check(self.batch > 0, "--batch", self.batch, "at least 1")
        check(0 <= self.variation < 1, "--variation", self.variation, "from 0 to below 1")


def main(options: ScalingOptions) -> None:
    print(draw_table(options))


def draw_table(options: ScalingOptions) -> str:
    """GitHub's Markdown, a line per number of GPUs; ranges are those from overlap 0 to overlap 1."""
    sizes = gradient_bytes(options.resolution, options.base_ch)
    lines = [
        f"gradients per step: G {sizes['G']:,} bytes, D {sizes['D']:,} bytes\n",
        "| GPUs | global batch | all-reduce, ms | waiting, ms | step, ms | images/s | efficiency |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    alone = options.step_ms / 1000
    for count in COUNTS:
        exchange = sum(all_reduce_seconds(size, count, link_of(options, count)) for size in sizes.values())
        waiting = waiting_seconds(count, alone, options.variation)
        steps = [step_seconds(alone, exchange, waiting, overlap) for overlap in (0, 1)]
        rates = "–".join(f"{count * options.batch / step:,.0f}" for step in steps)
        shares = "–".join(f"{alone / step:.0%}" for step in steps)
        milliseconds = "–".join(f"{1000 * step:.2f}" for step in steps)
        lines.append(
            f"| {count:,} | {count * options.batch:,} | {1000 * exchange:.2f} | {1000 * waiting:.2f} | {milliseconds} "
            f"| {rates} | {shares} |"
        )
    return "\n".join(lines)


def gradient_bytes(resolution: int, base_ch: int) -> dict[str, int]:
    """Of G and D as scaling_worker.py trains them: 4 bytes per parameter, in half precision too."""
    config = ModelConfig(resolution=resolution, base_ch=base_ch, **NETWORKS)
    with torch.device("meta"):
        return {name: 4 * count_parameters(kind(config)) for name, kind in (("G", Generator), ("D", Discriminator))}


def link_of(options: ScalingOptions, count: int) -> Link:
    """Of that many GPUs: between machines the narrower of both links, with the network's latency."""
    inside, between = INSIDE[options.inside], BETWEEN[options.network]
    machines = -(-count // PER_MACHINE)
    if machines == 1:
        return inside
    latency = between.latency + between.per_doubling * (math.log2(machines) - 1)
    return Link(min(inside.bandwidth, between.bandwidth), latency)


def all_reduce_seconds(size: int, count: int, link: Link) -> float:
    """Of `size` bytes of gradients over `count` processes, bucket after bucket."""
    if count == 1:
        return 0.0
    return 2 * (count - 1) / count * size / link.bandwidth + buckets(size) * link.latency


def buckets(size: int) -> int:
    """How many all-reduces DDP makes of it."""
    return 1 + math.ceil(max(0, size - FIRST_BUCKET) / BUCKET)


def waiting_seconds(count: int, step: float, variation: float) -> float:
    """For the slowest of `count`, twice a step: the halves of a step vary by 1/sqrt(2) of what the whole does."""
    return math.sqrt(2) * variation * step * expected_maximum(count)


def expected_maximum(count: int) -> float:
    """Of `count` independent standard normal numbers: the integral of x count phi(x) Phi(x)^(count - 1)."""
    return quad(lambda x: x * count * norm.pdf(x) * norm.cdf(x) ** (count - 1), -10, 10)[0]


def step_seconds(alone: float, exchange: float, waiting: float, overlap: float) -> float:
    """Of N processes; `overlap` 0 to 1: the share hidden of what fits behind the backward passes."""
    return alone + exchange - overlap * min(exchange, WINDOW * alone) + waiting


if __name__ == "__main__":
    run(main, ScalingOptions)

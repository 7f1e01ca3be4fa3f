"""B1 on a GPU: three sizes, fp32 (TF32), bf16 and fp16, with and without torch.compile, 16 steps a turn."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.operations import Operations
from benchmarks.side_by_side import Different, Row, Setting, compared, in_turns
from benchmarks.step_pair import BASELINE, LAZY, NAME, Pair, Point

POINTS = (Point(128, 32, 4), Point(128, 32, 64), Point(128, 64, 64))
GOALS = {
    ("128 px, base_ch 32, batch 4", "strict"): 2.0,
    ("128 px, base_ch 32, batch 4", "max"): 4.0,
    ("128 px, base_ch 32, batch 64", "max"): 2.0,
    ("128 px, base_ch 64, batch 64", "max"): 1.4,
}
CLOSE = 0.02
"""Relative difference of the losses of three steps, beside a plain loop of the same precision."""
ROUNDS = 5


def rows(setting: Setting) -> Iterator[Row]:
    peak = measured_peak(setting.device)
    for point in POINTS:
        yield from measure(point, setting, peak)


def measure(point: Point, setting: Setting, peak: float) -> Iterator[Row]:
    """Every way in turns; strict and lazy beside the plain loop in fp32, half precisions beside one in the same."""
    pairs = {precision: Pair(point, setting, precision) for precision in ("no", "bf16", "fp16")}
    parity = {precision: agreement(pair) for precision, pair in pairs.items()}
    compiled = Pair(point, setting, "bf16", "reduce-overhead")
    compiling = setting.clock()
    compiled_parity = agreement(compiled)
    ours(compiled, LAZY)()  # the step without R1 too
    compiling = setting.clock() - compiling
    ways = {f"plain {precision}": plain(pair) for precision, pair in pairs.items()}
    ways |= {"strict no": ours(pairs["no"], 1)}
    ways |= {f"lazy {precision}": ours(pair, LAZY) for precision, pair in pairs.items()}
    ways |= {"max bf16": ours(compiled, LAZY)}
    seconds = in_turns(ways, ROUNDS, setting.clock, warm_up=2)
    flops = {1: flops_of(pairs["no"], 1), LAZY: flops_of(pairs["no"], LAZY)}
    rivals = [("strict no", "no"), ("lazy no", "no"), ("lazy bf16", "bf16"), ("lazy fp16", "fp16"),
              ("max bf16", "no"), ("max bf16", "bf16"), ("max bf16", "fp16")]  # fmt: skip
    for way, precision in rivals:
        kind = way.split()[0]
        memory = [peak_bytes(ways[name]) for name in (f"plain {precision}", way)]
        row = compared(
            NAME, f"{point}, {way.replace(' no', ' fp32')}", f"{BASELINE}, {precision.replace('no', 'fp32')}",
            "images/s", point.batch * LAZY, seconds[f"plain {precision}"], seconds[way],
            compiled_parity if kind == "max" else parity[precision],
            GOALS.get((str(point), kind)), peak_bytes=memory[1], peak_bytes_theirs=memory[0], compile_seconds=compiling,
        )  # fmt: skip
        share = row.ours * flops[1 if kind == "strict" else LAZY] / peak
        note = f"share of bf16's peak {share:.0%}, memory {memory[0] / 1e9:.2f} → {memory[1] / 1e9:.2f} GB"
        yield replace(row, note=note, details=row.details | {"share_of_peak": share, "peak_flops": peak})


def ours(pair: Pair, r1_interval: int) -> Callable[[], None]:
    """As many steps as lie between two penalties of lazy R1."""
    step = pair.ours(r1_interval)

    def work() -> None:
        torch.backends.cudnn.benchmark = True  # as start_accelerator leaves them
        torch.set_float32_matmul_precision("high")
        for _ in range(LAZY):
            step()

    return work


def plain(pair: Pair) -> Callable[[], None]:
    def work() -> None:
        torch.backends.cudnn.benchmark = False  # torch's defaults; its convolutions use TF32 all the same
        torch.set_float32_matmul_precision("highest")
        for _ in range(LAZY):
            pair.plain.step(*pair.plain_inputs)

    return work


def agreement(pair: Pair) -> str:
    """The losses of the first steps of both. Raises Different. fp32 is compared as fp32, not as TF32."""
    with exact():
        if pair.trainer.config.mixed_precision == "no":
            return pair.check_parity(steps=3)
    pair.learning_rates({name: 1e-6 for name in "GD"})
    worst = 0.0
    for _ in range(3):
        theirs, stats = pair.plain.step(*pair.inputs(pair.trainer.step_number)), pair.trainer.step()
        for name, value in zip(("loss_d", "loss_g"), theirs, strict=True):
            worst = max(worst, abs(stats[name].item() - value) / (1 + abs(value)))
    if not worst <= CLOSE:
        raise Different(f"losses of 3 steps differ by {worst:.1%}, more than {CLOSE:.0%}")
    return f"losses of 3 steps within {worst:.1%}"


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Without TF32."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
        torch.set_float32_matmul_precision(precision)


def flops_of(pair: Pair, r1_interval: int) -> float:
    """Of our step, per image."""
    step = pair.ours(r1_interval)
    with Operations() as counted:
        for _ in range(r1_interval):
            step()
    return counted.flops / r1_interval / pair.point.batch


def peak_bytes(work: Callable[[], None]) -> int:
    """What its steps allocate beyond what is there between them."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def measured_peak(device: torch.device, size: int = 8192, times: int = 20) -> float:
    """FLOP/s of bf16 matrix products, the best of three turns."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            a @ b
        end.record()
        torch.cuda.synchronize(device)
        best = min(best, start.elapsed_time(end) / 1000)
    return times * 2 * size**3 / best

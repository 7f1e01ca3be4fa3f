"""The GPU's comparison of training steps, run where there is none: every way, gate and note, at a size of seconds."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks import plain_loop, step_on_gpu
from benchmarks.side_by_side import Different, Setting
from benchmarks.step_pair import Pair, Point
from toolkit.training.objective import Objective


@pytest.fixture
def setting(tmp_path, monkeypatch) -> Iterator[Setting]:
    """What asks CUDA is answered; fp16 is bf16, for a CPU trains in neither."""
    monkeypatch.setattr(step_on_gpu, "LAZY", 2)
    monkeypatch.setattr(step_on_gpu, "ROUNDS", 1)
    monkeypatch.setitem(plain_loop.HALF, "fp16", torch.bfloat16)
    for name, answer in {"memory_allocated": 1, "max_memory_allocated": 3, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    yield Setting(torch.device("cpu"), tmp_path, rounds=1)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False


@pytest.fixture(params=["", pytest.param("aot_eager", marks=pytest.mark.slow)], ids=["eager", "compiled"])
def modes(request, monkeypatch) -> list[str]:
    """In which objectives were to be compiled; with a backend they are, which takes long."""
    asked, compile_with = [], Objective.compile

    def compile(self, mode):
        asked.append(mode)
        if request.param:
            compile_with(self, "default", request.param)

    torch._dynamo.reset()
    monkeypatch.setattr(Objective, "compile", compile)
    return asked


def test_every_row_has_its_rival_and_its_gate(setting, modes):
    rows = list(step_on_gpu.measure(Point(32, 4, 4), setting, peak=1e12))
    assert modes == ["reduce-overhead"]
    assert [(row.point.rpartition(", ")[2], row.baseline.rpartition(", ")[2]) for row in rows] == [
        ("strict fp32", "fp32"), ("lazy fp32", "fp32"), ("lazy bf16", "bf16"), ("lazy fp16", "fp16"),
        ("max bf16", "fp32"), ("max bf16", "bf16"), ("max bf16", "fp16"),
    ]  # fmt: skip
    assert all(row.ratio > 0 and "losses of 3 steps within" in row.parity for row in rows)
    assert rows[0].details["share_of_peak"] == pytest.approx(
        rows[0].ours * step_on_gpu.flops_of(Pair(Point(32, 4, 4), setting), 1) / 1e12, rel=1e-6
    )
    assert rows[0].details["peak_bytes"] == 2


def test_half_precision_that_computes_something_else_gives_no_number(setting):
    pair = Pair(Point(32, 4, 4), setting, "bf16")
    with torch.no_grad():
        pair.plain.G.net.to_rgb.bias += 1
    with pytest.raises(Different, match="losses of 3 steps differ"):
        step_on_gpu.agreement(pair)

"""What goes into a log line."""

import json
import os
import stat

import torch

from tests.test_checkpoint import snapshot
from toolkit.run_folder import checkpoint
from toolkit.run_folder.records import TrainingLog, Window, read_log


class TwoProcesses:
    """Gathers this process's row and another one's, as Accelerate does along the first dimension."""

    def __init__(self, other: list[dict[str, float]]) -> None:
        self.other = Window()
        for stats in other:
            self.other.add({name: torch.tensor(value) for name, value in stats.items()})

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        rows = [mine]
        self.other.read(type("Catch", (), {"gather": lambda _, row: rows.append(row) or row})())
        return torch.cat(rows)


def test_means_are_over_steps_and_processes_and_a_peak_is_the_worst_step_of_all_together():
    window = Window()
    for loss in (1.0, 9.0, 2.0):
        r1 = {"r1": torch.tensor(4.0)} if loss == 2 else {}
        window.add({"loss_d": torch.tensor(loss)} | r1)
    assert window.steps == 3
    other = [{"loss_d": 7.0}, {"loss_d": 1.0}, {"loss_d": 4.0, "r1": 6.0}]
    assert window.read(TwoProcesses(other)) == {"loss_d": 4.0, "r1": 5.0, "loss_d_max": 5.0}
    assert window.steps == 0 and window.read(None) == {}


def test_numbers_that_are_not_finite_are_null_and_half_lines_are_passed_over(tmp_path):
    log = TrainingLog(tmp_path, 0, 0)
    log.write({"step": 1, "loss_d": float("nan"), "loss_g": float("inf"), "d_steps": 1})
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert json.loads(log.path.read_text().splitlines()[0]) == {"step": 1, "loss_d": None, "loss_g": None, "d_steps": 1}
    assert [line["step"] for line in read_log(tmp_path)] == [1]


def test_a_resumed_log_drops_what_will_come_again_but_keeps_what_rollbacks_took_back(tmp_path):
    log = TrainingLog(tmp_path, 0, 0)
    for step, attempt in ((5, 0), (10, 0), (15, 0), (10, 1), (15, 1)):
        log.write({"step": step} | ({"attempt": attempt} if attempt else {}))
    kept = [(line["step"], line.get("attempt", 0)) for line in TrainingLog(tmp_path, 10, 1).kept]
    assert kept == [(5, 0), (10, 0), (15, 0), (10, 1)]


def test_everyone_whom_the_umask_lets_can_read_a_checkpoint(tmp_path):
    before = os.umask(0o022)
    try:
        folder = checkpoint.save(tmp_path, snapshot(1), keep=2)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}

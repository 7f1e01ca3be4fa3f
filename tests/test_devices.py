"""Which device a command runs on."""

import pytest
import torch

from toolkit import devices
from toolkit.errors import UserError


@pytest.mark.parametrize("local, expected", [("0", "cuda:0"), ("5", "cuda:1"), ("", "cuda")])
def test_each_process_of_a_machine_takes_another_gpu(monkeypatch, local: str, expected: str) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert devices.pick_device("auto") == torch.device(expected)
    assert devices.pick_device("cpu") == torch.device("cpu") and devices.pick_device("cuda:1").index == 1


def test_a_device_that_is_not_there_costs_one_line() -> None:
    with pytest.raises(UserError, match="device 'tpu' cannot be used"):
        devices.pick_device("tpu")

"""Trackers: what they record, what they must never record, and that nothing that fails in them ends a run."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch.utils
from accelerate import PartialState
from PIL import Image

from tests.conftest import REPOSITORY
from toolkit.config import ResolvedConfig
from toolkit.run_folder import trackers
from toolkit.run_folder.trackers import Trackers

event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture(autouse=True)
def no_credentials(tmp_path, monkeypatch):
    """Tests neither find nor leave anything in the home folder, and never reach a server."""
    PartialState(cpu=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def start(run: Path, track: str, run_id: str | None = None, step: int = 0, **options) -> Trackers:
    run.mkdir(exist_ok=True)
    config = ResolvedConfig(out_dir=str(run), track=track, **options)
    return Trackers(config, dataclasses.asdict(config), run_id, step)


def tensorboard(run: Path):
    """What TensorBoard shows of the run."""
    reader = event_files.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return reader.Reload()


def points(run: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in tensorboard(run).Scalars(name)]


def wandb_records(run: Path) -> list:
    """The records of all offline runs of the folder: protocol buffers in LevelDB's log format (blocks of 32 KiB;
    checksum, length and type before each piece) after a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # a finished run may still be on its way to the disk
    records = []
    for path in sorted(run.glob("wandb/*run*/run-*.wandb")):
        if path.parent.is_symlink():
            continue
        data, at, piece = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            piece += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # full, or the last piece
                records.append(Record.FromString(piece))
                piece = b""
    return records


def wandb_history(run: Path) -> list[dict]:
    rows = []
    for record in wandb_records(run):
        if record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


def saved_image(path: Path) -> Path:
    Image.fromarray(np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)).save(path)
    return path


def test_tensorboard_holds_numbers_images_alerts_and_the_config(tmp_path):
    run = tmp_path / "run"
    one = start(run, "tensorboard")
    one.log({"step": 5, "loss_d": 1.5, "attempt": 2, "loss_g": float("nan"), "text_sensitivity": None})
    one.log_image("samples", saved_image(tmp_path / "grid.png"), 5)
    one.alert("collapse", "rows look alike")
    one.close()
    shown = tensorboard(run)
    assert shown.Tags()["scalars"] == ["loss_d", "attempt"] and points(run, "loss_d") == [(5, 1.5)]
    image = shown.Images("samples")[0]
    assert (image.step, image.width, image.height) == (5, 20, 12)
    (tmp_path / "read.png").write_bytes(image.encoded_image_string)
    with Image.open(tmp_path / "read.png") as read, Image.open(tmp_path / "grid.png") as written:
        assert np.array_equal(np.asarray(read), np.asarray(written))
    texts = {name: shown.Tensors(name)[0] for name in shown.Tags()["tensors"]}
    assert texts["alert/collapse/text_summary"].tensor_proto.string_val == [b"rows look alike"]
    assert texts["alert/collapse/text_summary"].step == 5
    assert b'"lr_g": 0.00025' in texts["config/text_summary"].tensor_proto.string_val[0]


def test_tensorboard_goes_on_after_a_resume_and_after_a_rollback(tmp_path):
    """Points after the checkpoint vanish, earlier ones stay."""
    run = tmp_path / "run"
    for step, lines in ((0, (10, 20, 30)), (20, (25, 35)), (35, (45, 40, 50))):
        one = start(run, "tensorboard", step=step)
        for at in lines:
            one.log({"step": at, "loss_d": float(at + step)})
        one.close()
    assert points(run, "loss_d") == [(10, 10), (20, 20), (25, 45), (35, 55), (40, 75), (50, 85)]


def test_wandb_offline_stores_lines_along_their_own_step_and_a_resume_keeps_the_id(tmp_path):
    run = tmp_path / "run"
    one = start(run, "wandb", wandb_mode="offline")
    one.log({"step": 20, "loss_d": 1.5, "loss_g": float("inf")})
    one.log_image("samples", saved_image(tmp_path / "grid.png"), 20)
    one.close()
    two = start(run, "wandb", run_id=one.wandb_run_id, step=10, wandb_mode="offline")
    two.log({"step": 15, "loss_d": 2.5})
    two.close()
    assert one.wandb_run_id == two.wandb_run_id and len(one.wandb_run_id) >= 8
    rows = wandb_history(run)
    assert [row["step"] for row in rows] == [20, 20, 15]
    assert rows[0] == {"step": 20, "loss_d": 1.5} and rows[2] == {"step": 15, "loss_d": 2.5}
    assert (rows[1]["samples.width"], rows[1]["samples.height"]) == (20, 12)
    assert len(list(run.glob("wandb/offline-run-*/files/" + rows[1]["samples.path"]))) == 1
    records = wandb_records(run)
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in records
            if record.HasField("metric")}  # fmt: skip
    assert axes["*"] == "step" and "step" in axes
    assert {record.run.run_id for record in records if record.HasField("run")} == {one.wandb_run_id}


SECRET_RUN = """
import dataclasses, sys
from accelerate import PartialState
from toolkit.config import ResolvedConfig
from toolkit.run_folder.trackers import Trackers
PartialState(cpu=True)
tracking = {"track": "wandb,tensorboard", "wandb_mode": "offline", "track_project": "plainlyseen"}
config = ResolvedConfig(out_dir=sys.argv[1], **tracking)
one = Trackers(config, dataclasses.asdict(config), None)
print("printedsecret")
one.log({"step": 1, "loss_d": 0.5})
one.alert("title", "text")
one.close()
"""


def test_no_secret_of_environment_command_line_or_console_reaches_the_run_folder(tmp_path):
    """Every byte under the run folder is searched; the project's name, which belongs there, shows that this finds."""
    run = tmp_path / "run"
    run.mkdir()
    secrets = {"WANDB_API_KEY": "k3y" + "0" * 37, "DATABASE_PASSWORD": "envsecret"}
    environment = {**os.environ, **secrets, "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SECRET_RUN, str(run), "--token=argvsecret"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "printedsecret" in done.stdout and "train:" not in done.stderr, done.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() + str(path).encode() for path in files)
    for kind in (".wandb", "tfevents"):
        assert any(kind in path.name and b"plainlyseen" in path.read_bytes() for path in files), kind
    for secret in (*secrets.values(), "argvsecret", "printedsecret"):
        assert secret.encode() not in held, secret
    assert not [path.name for path in files if path.name in ("requirements.txt", "wandb-metadata.json", "diff.patch")]


def test_online_without_a_key_or_a_terminal_is_stored_instead_and_said_once(tmp_path, capsys):
    one = start(tmp_path / "run", "wandb")
    one.log({"step": 1, "loss_d": 1.0})
    one.close()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 1 and "no API key: set WANDB_API_KEY" in said[0] and "wandb sync" in said[0]
    assert wandb_history(tmp_path / "run") == [{"step": 1, "loss_d": 1.0}]


def test_online_without_a_network_is_stored_instead_and_said_once(tmp_path, capsys, monkeypatch):
    """The key is there, nothing listens at the server's address."""
    monkeypatch.setattr(trackers, "PATIENCE", 1)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    one = start(tmp_path / "run", "wandb", run_id="abcd1234")
    one.log({"step": 1, "loss_d": 1.0})
    one.close()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 1 and "wandb is not online (" in said[0] and "wandb sync" in said[0]
    assert one.wandb_run_id == "abcd1234" and {"step": 1, "loss_d": 1.0} in wandb_history(tmp_path / "run")


@pytest.mark.parametrize(
    "environment, netrc, found",
    [
        ({"WANDB_API_KEY": "x"}, "", True),
        ({"WANDB_IDENTITY_TOKEN_FILE": "x"}, "", True),
        ({}, "machine 127.0.0.1 login user password x", True),
        ({}, "machine github.com login user password x", False),
        ({"WANDB_BASE_URL": "https://api.wandb.ai"}, "machine api.wandb.ai login user password x", True),
        ({}, "no netrc file", False),
        ({}, None, False),
    ],
)
def test_where_a_key_is_looked_for(tmp_path, monkeypatch, environment, netrc, found):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".netrc").write_text(netrc + "\n")
        (tmp_path / "home" / ".netrc").chmod(0o600)
    assert trackers.has_wandb_key() == found


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_said_once_and_the_other_goes_on(tmp_path, capsys, monkeypatch, name):
    hidden = [module for module in sys.modules if module.startswith(("torch.utils.tensorboard", "tensorboard"))]
    if name == "tensorboard":
        monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    for module in ["wandb"] if name == "wandb" else ["tensorboard", "tensorboardX", *hidden]:
        monkeypatch.setitem(sys.modules, module, None)
    one = start(tmp_path / "run", "wandb,tensorboard", wandb_mode="offline")
    for step in (1, 2):
        one.log({"step": step, "loss_d": 1.0})
    one.close()
    monkeypatch.undo()
    assert capsys.readouterr().err.splitlines() == [
        f"train: {name} is off (not installed: pip install {name}); local logs go on"
    ]
    run = tmp_path / "run"
    rows = points(run, "loss_d") if name == "wandb" else [(r["step"], r["loss_d"]) for r in wandb_history(run)]
    assert rows == [(1, 1.0), (2, 1.0)]


@pytest.mark.parametrize("method", ["log", "log_image", "alert", "close"])
def test_an_exception_in_mid_run_is_said_once_and_the_other_tracker_goes_on(tmp_path, capsys, monkeypatch, method):
    class Broken:
        run_id = "r1"

        def __init__(self, *arguments) -> None:
            pass

        def log(self, *arguments) -> None:
            assert method != "log", "the server\nhung up"

        def __getattr__(self, name: str):
            if name == method:
                raise OSError(28, "No space left on device")
            return lambda *arguments: None

    monkeypatch.setattr(trackers, "_Wandb", Broken)
    run = tmp_path / "run"
    one = start(run, "wandb,tensorboard")
    for step in (1, 2):
        one.log({"step": step, "loss_d": 1.0})
        one.log_image("samples", saved_image(tmp_path / "grid.png"), step)
        one.alert("title", "text")
    one.close()
    one.log({"step": 3, "loss_d": 1.0})  # after the end: nothing happens
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train: wandb is off (") and one.wandb_run_id == "r1"
    assert points(run, "loss_d") == [(1, 1.0), (2, 1.0)]


def test_a_full_disk_under_tensorboard_is_said_once(tmp_path, capsys, monkeypatch):
    """The event file is written by a thread, whose error arrives at one of the next calls."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    one = start(tmp_path / "run", "tensorboard")
    record_writer = one._open["tensorboard"]._tracker.writer._get_file_writer().event_writer._async_writer._writer

    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_writer, "write", full)
    for step in range(5):
        one.log({"step": step, "loss_d": 1.0})
    one.close()
    said = capsys.readouterr().err
    assert said.count("train: tensorboard is off (") == 1 and "No space left on device" in said


def test_a_run_folder_that_cannot_take_them_ends_nothing(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file, not a folder")
    start(tmp_path / "run", "tensorboard").close()
    assert "train: tensorboard is off (" in capsys.readouterr().err


def test_without_trackers_nothing_is_written_or_imported(tmp_path):
    one = start(tmp_path / "run", "", run_id="kept")
    one.log({"step": 1, "loss_d": 1.0})
    one.close()
    assert one.wandb_run_id == "kept" and not list((tmp_path / "run").iterdir())

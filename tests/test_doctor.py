"""The doctor: what it says of sound and of broken set-ups, that it leaves no trace, and the arithmetic of its times."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.running import lone_trainer
from toolkit import doctor
from toolkit.checks import checkup
from toolkit.checks import pace as pace_module
from toolkit.checks.checkup import FAIL, OK, WARN, Report, check_encoder, check_machine, check_memory, checkpoint_bytes
from toolkit.checks.memory import MemoryEstimate, estimate
from toolkit.checks.pace import Pace
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.run_folder import checkpoint
from toolkit.run_folder.snapshot import take_snapshot
from toolkit.training.trainer import Trainer

TINY = {
    "resolution": 16, "base_ch": 4, "z_dim": 8, "d_scales": 1, "batch": 8, "workers": 0, "n_sample": 4,
    "score_count": 8, "iters": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def needed() -> MemoryEstimate:
    return estimate(ResolvedConfig(**TINY), 1, "no")


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch, needed):
    """The estimate, which takes longer than all else, is made once; test_memory.py tests it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(checkup.memory, "estimate", lambda *arguments: needed)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def examined(capsys, shard_folder: Path, out_dir: Path, **options) -> tuple[int, dict[str, list[tuple[str, str]]], str]:
    """Run the doctor. Returns exit code, {topic: [(level, text)]}, and what stands below the empty line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        doctor.main(TrainConfig(**{"data": str(shard_folder), "out_dir": str(out_dir), **TINY, **options}))
    checks, _, end = capsys.readouterr().out.partition("\n\n")
    found = {}
    for line in checks.splitlines():
        level, topic, text = line.split(maxsplit=2)
        assert level in (OK, WARN, FAIL) and text, line
        found.setdefault(topic, []).append((level, text))
    return ended.value.code, found, end.strip()


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def saved_run(shard_folder: Path, run: Path, **options) -> Path:
    """A run folder with a checkpoint after one step."""
    config = ResolvedConfig(**{"data": str(shard_folder), "out_dir": str(run), **TINY, **options})
    one = Trainer(config, Accelerator(cpu=True), ShardSet(shard_folder))
    one.step()
    path = checkpoint.save(run, take_snapshot(one), keep=3)
    AcceleratorState._reset_state(reset_partial_state=True)
    return path


def test_a_sound_setup_is_ready_and_untouched(capsys, shard_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkup.memory, "estimate", estimate)
    code, found, end = examined(capsys, shard_folder, tmp_path / "new" / "run", r1_interval=4)
    assert code == 0 and not any(level == FAIL for lines in found.values() for level, _ in lines)
    assert found["data"][0][1].startswith("24 samples in 3 shards, 7 distinct captions, 16 px")
    assert found["batch"] == [(OK, "8 = 1 process x 1 x 8 images; 50 steps see each sample 33.3 times")]
    assert found["encoder"][0][0] == WARN and "hashing, 768-d, fingerprint" in found["encoder"][0][1]
    assert "nothing to go on from" in found["resume"][0][1] and "images/s" in found["step"][0][1]
    verdict, total = end.splitlines()
    assert verdict.startswith("ready, with ") and {"data", "encoder"} <= set(verdict.split(": ")[1].split(", "))
    assert total.startswith("50 steps, about ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "topic", "text"),
    [
        ({"data": ""}, "data", "none given; pass --data"),
        ({"data": "/nowhere"}, "data", "no shard folder at /nowhere"),
        ({"resolution": 32}, "data", "--resolution 16"),
        ({"cond_dim": 512}, "data", "--cond_dim 768"),
        ({"batch": 8, "batch_gpu": 3}, "data", "choose a divisor of 8"),
        ({"out_dir": "/dev/null/run"}, "out_dir", "cannot be written"),
        ({"resume_from": "latest"}, "resume", "holds no valid checkpoint"),
        ({"resume_from": "/nowhere"}, "resume", "no such folder"),
        ({"score": "fid"}, "score", "needs at least 64"),
        ({"score": "fdi"}, "score", "unknown score 'fdi'; did you mean 'fid'?"),
        ({"score": "none", "eval_every": 5, "metrics": "speed"}, "score", "speed"),
    ],
)
def test_what_would_end_the_run_is_named(capsys, shard_folder, tmp_path, options, topic, text):
    code, found, end = examined(capsys, shard_folder, **{"out_dir": tmp_path / "run", **options})
    assert code == 1 and end == f"not ready: {topic}"
    assert [text in said for level, said in found[topic] if level == FAIL] == [True]
    assert "step" not in found and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_the_night(capsys, shard_folder, tmp_path, monkeypatch):
    """Three kept, one being written, the best one: five checkpoints must find room, of which two are there."""
    size = checkpoint_bytes(ResolvedConfig(**TINY))
    usage = namedtuple("usage", "total used free")
    for made in ("ckpt_0000001", "ckpt_0000002"):
        (tmp_path / "run" / made).mkdir(parents=True)
    for free, level in ((3 * size - 1, FAIL), (3 * size, OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**12, 0, free))
        report = Report(shown=False)
        assert checkup.check_folder(report, ResolvedConfig(**TINY, out_dir=str(tmp_path / "run"))) > 0
        assert [found for found, topic, _ in report.found if topic == "disk"] == [level]
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1000))
    code, found, end = examined(capsys, shard_folder, tmp_path / "run")
    assert code == 1 and end == "not ready: disk" and "make room" in found["disk"][0][1]


def test_a_folder_without_write_access_is_found(capsys, shard_folder, tmp_path, monkeypatch):
    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkup.tempfile, "TemporaryDirectory", refuse)
    code, found, end = examined(capsys, shard_folder, tmp_path / "run")
    assert code == 1 and end == "not ready: out_dir" and "Permission denied" in found["out_dir"][0][1]


def test_a_checkpoint_has_the_size_that_is_reckoned_with(shard_folder, tmp_path):
    """Within 3 %: headers, batch-norm statistics and spectral-norm vectors are left out."""
    path = saved_run(shard_folder, tmp_path / "run")
    size = sum(file.stat().st_size for file in path.iterdir())
    assert checkpoint_bytes(ResolvedConfig(**TINY)) == pytest.approx(size, rel=0.03)


def test_the_checkpoint_to_go_on_from_is_tried_and_left_as_it_is(capsys, shard_folder, tmp_path):
    path = saved_run(shard_folder, tmp_path / "run")
    before = contents(tmp_path)
    code, found, end = examined(capsys, shard_folder, tmp_path / "run", lr_g=3e-4)
    assert code == 0 and contents(tmp_path) == before
    assert found["resume"][0][0] == OK and f"{path}, at step 1; changed since then: lr_g" in found["resume"][0][1]
    assert end.splitlines()[1].startswith("49 steps, about ")
    code, found, end = examined(capsys, shard_folder, tmp_path / "run", iters=1)
    assert code == 0 and found["length"][0][0] == WARN and end.splitlines()[1].startswith("0 steps")
    code, found, end = examined(capsys, shard_folder, tmp_path / "run", base_ch=8)
    assert code == 1 and end == "not ready: resume" and "base_ch 4 -> 8" in found["resume"][0][1]
    (path / "state.json").write_text("{}")
    code, found, end = examined(capsys, shard_folder, tmp_path / "run")
    assert code == 1 and [level for level, _ in found["resume"]] == [WARN, FAIL]


def test_a_folder_in_use_is_found(capsys, shard_folder, tmp_path):
    run = tmp_path / "run"
    hold = (
        "import sys, pathlib; from toolkit.run_folder.lock import RunLock; lock = RunLock(pathlib.Path(sys.argv[1])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        before = contents(run)
        code, found, end = examined(capsys, shard_folder, run)
    finally:
        holder.communicate(timeout=30)
    assert code == 1 and end == "not ready: out_dir" and "in use by another run" in found["out_dir"][0][1]
    assert contents(run) == before
    report = Report(shown=False)
    checkup.check_folder(report, ResolvedConfig(**TINY, out_dir=str(run)))
    assert not report.of(FAIL)


def test_a_damaged_image_met_while_timing_is_a_failure(capsys, shard_folder, tmp_path, monkeypatch):
    def damaged(trainer):
        raise checkup.UserError("shard 3: sample 17 is damaged")

    monkeypatch.setattr(doctor, "measure", damaged)
    code, found, end = examined(capsys, shard_folder, tmp_path / "run")
    assert code == 1 and found["trial"] == [(FAIL, "shard 3: sample 17 is damaged")] and end == "not ready: trial"


def test_memory_that_runs_out_while_timing_is_a_failure_with_remedies(capsys, shard_folder, tmp_path, monkeypatch):
    def full(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(doctor, "measure", full)
    code, found, end = examined(capsys, shard_folder, tmp_path / "run", batch_gpu="auto")
    assert code == 1 and end == "not ready: trial" and "try --batch_gpu 4 or" in found["trial"][0][1]
    assert found["batch_gpu"] == [(OK, "auto: 8 images at once")]


def test_precision_and_trackers_that_would_not_be_what_was_asked_for(capsys, shard_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "measure", lambda trainer: Pace(1, 1, 0.1, 0.1))
    options = {"mixed_precision": "fp16", "track": "wandb,tensorboard"}
    found_spec = checkup.importlib.util.find_spec
    hidden = {"tensorboard"}
    monkeypatch.setattr(
        checkup.importlib.util, "find_spec", lambda name, *rest: None if name in hidden else found_spec(name, *rest)
    )
    code, found, _ = examined(capsys, shard_folder, tmp_path / "run", **options)
    assert code == 0 and found["precision"] == [
        (WARN, "fp16 was asked for, training would be in fp32: fp16 needs a GPU")
    ]
    assert [level for level, _ in found["tracker"]] == [WARN, WARN]
    assert "offline" in found["tracker"][0][1] and "pip install tensorboard" in found["tracker"][1][1]
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    _, found, _ = examined(capsys, shard_folder, tmp_path / "run", track="wandb")
    assert found["tracker"] == [(OK, "wandb, online")]


State = namedtuple("State", "device num_processes mixed_precision")


@pytest.mark.parametrize(
    ("device", "cards", "here", "level", "text"),
    [
        ("cpu", 1, 1, WARN, "although there is a GPU"),
        ("cuda", 2, 1, WARN, "1 of 2 GPUs stay idle; accelerate launch --multi_gpu --num_processes 2"),
        ("cuda", 2, 2, OK, "2 GPUs on this machine"),
        ("cpu", 0, 1, OK, "0 GPUs on this machine"),
    ],
)
def test_gpus_that_stay_idle_are_pointed_out(monkeypatch, device, cards, here, level, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    report = Report(shown=False)
    check_machine(report, ResolvedConfig(), State(torch.device(device), here, "no"))
    assert [(found, text in said) for found, topic, said in report.found if topic == "processes"] == [(level, True)]


def test_the_estimate_is_held_against_the_memory_there_is(monkeypatch):
    state = State(torch.device("cuda", 0), 1, "no")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    options = {**TINY, "batch": 64}
    needed = estimate(ResolvedConfig(**options), 1, "no")
    monkeypatch.setattr(checkup.memory, "estimate", lambda config, processes, precision, encoder: needed)
    cases = [
        (needed.total() + 1, None, OK, "room for about 64 images"),
        (needed.total() - 1, None, FAIL, "try --batch_gpu 32 or --mixed_precision fp16"),
        (needed.total(20), "auto", OK, "batch_gpu auto will try what fits, about 20"),
        (1000, "auto", FAIL, "out of memory"),
    ]
    for room, batch_gpu, level, text in cases:
        card = namedtuple("Card", "total_memory")(room + checkup.CARD_EXTRA)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        report = Report(shown=False)
        given = TrainConfig(**options, batch_gpu=batch_gpu)
        check_memory(report, given.resolved(), state, given.tries_batch_gpu)
        assert [(found, text in said) for found, _, said in report.found] == [(level, True)], report.found


def test_an_encoder_nobody_knows_is_no_obstacle_to_training():
    report = Report(shown=False)
    check_encoder(report, EncoderIdentity.from_vectors("ViT-L-99/mine", ["a", "b"], torch.eye(2, 768)))
    check_encoder(report, EncoderIdentity.from_vectors("ViT-L-14/laion2b_s32b_b82k", ["a", "b"], torch.eye(2, 768)))
    assert [level for level, _, _ in report.found] == [WARN, OK] and "ViT-L-14" in report.found[0][2]


def test_times_add_up():
    """16 s a step with R1, 1 s without, every 15th: 2 s. 100 steps, 3 sample grids and 2 checkpoints."""
    config = ResolvedConfig(r1_interval=15, sample_every=50, ckpt_every=100, n_sample=10, score_count=100, workers=2)
    pace = Pace(step=1.0, penalised=16.0, loading=0.5, image=0.1)
    assert pace.mean_step(config) == 2.0
    assert pace.total(config, 100, checkpoint_seconds=5.0) == pytest.approx(100 * 2 + 3 * 1 + 2 * 10 + 2 * 5)
    evaluating = ResolvedConfig(**{**vars(config), "eval_every": 25, "eval_count": 30})
    assert pace.total(evaluating, 100, 5.0) - pace.total(config, 100, 5.0) == pytest.approx(5 * 3)  # images alone
    starved = pace._replace(loading=3.0)
    assert starved.total(config, 100, 5.0) - pace.total(config, 100, 5.0) == pytest.approx(100)
    alone = ResolvedConfig(**{**vars(config), "workers": 0})
    assert starved.total(alone, 100, 5.0) - pace.total(config, 100, 5.0) == pytest.approx(300)
    assert pace._replace(penalised=0.9).mean_step(config) == 1.0  # noise, not a gain
    spoken = [doctor.duration(seconds) for seconds in (42, 780, 26_400, 100_000, 273_600)]
    assert spoken == ["42 s", "13 min", "7 h 20 min", "27 h 47 min", "3 d 4 h"]


@pytest.mark.parametrize(
    ("workers", "loading", "level", "text"),
    [
        (1, 0.25, OK, "data is 4.0 times as fast as the step"),
        (1, 0.8, WARN, "only 1.2 times as fast"),
        (1, 4.0, WARN, "would wait: data takes 4.0 times as long as a step; raise --workers (1 now)"),
        (64, 4.0, WARN, "all 8 CPU cores are busy loading"),
        (0, 0.01, OK, "1% of the time"),
        (0, 1.0, WARN, "50% of the time goes into loading data; raise --workers above 0"),
    ],
)
def test_a_step_that_would_wait_for_its_data_is_pointed_out(monkeypatch, workers, loading, level, text):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    report = Report(shown=False)
    config, pace = ResolvedConfig(workers=workers), Pace(1.0, 1.0, loading, 0.1)
    doctor.describe_pace(report, config, pace, State(torch.device("cpu"), 1, "no"))
    assert [(found, text in said) for found, topic, said in report.found if topic == "loading"] == [(level, True)]


def test_processes_that_believe_they_are_alone_say_so_once(capsys, shard_folder, tmp_path, monkeypatch):
    """What launch.py refuses before there is an Accelerator: then RANK alone tells who is the main process."""

    def refuse(config):
        raise checkup.UserError("2 processes were launched but each believes it is alone")

    monkeypatch.setattr(doctor, "start_accelerator", refuse)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        code, found, end = examined(capsys, shard_folder, tmp_path / "run")
        assert code == 1 and len(found) == lines and end == "not ready: processes" * lines


def run_doctor(shard_folder: Path, out_dir: Path, *arguments: str) -> tuple[int, list[str]]:
    """Two processes under torchrun. Returns the exit code and the lines of stdout."""
    flags = [text for name, value in TINY.items() for text in (f"--{name}", str(value))]
    command = [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "toolkit.doctor",
        *flags, "--data", str(shard_folder), "--out_dir", str(out_dir), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = Forked(command, REPOSITORY, environment, stdout=True)
    told, said = process.communicate()
    assert told, said[-3000:]
    return process.returncode, told.splitlines()


@pytest.mark.dist
def test_two_processes_give_one_report(two):
    (code, lines), (other_code, others) = (facts["doctor"] for facts in two.facts)
    assert code == other_code == 0 and others == []
    assert sum("2 processes on CPU" in line for line in lines) == 1
    assert sum(line.split()[1:2] == ["step"] for line in lines) == 1 and lines[-1].startswith("50 steps, about ")
    assert list((two.folder / "examined").iterdir()) == []


@pytest.mark.dist
def test_two_processes_that_cannot_train_say_so_once(shard_folder, tmp_path):
    code, lines = run_doctor(shard_folder, tmp_path / "run", "--batch", "7")
    assert code != 0 and lines[-1] == "not ready: data" and sum("divisible" in line for line in lines) == 1


def test_a_command_that_started_from_another_run_is_judged_by_where_it_has_got_to(shard_folder, tmp_path):
    """As training does: --resume_from OTHER counts until out_dir has a checkpoint of its own."""
    other = saved_run(shard_folder, tmp_path / "other")
    config = ResolvedConfig(data=str(shard_folder), out_dir=str(tmp_path / "run"), resume_from=str(other))
    assert doctor.find_start(Report(False), config) == other
    own = tmp_path / "run" / other.name
    shutil.copytree(other, own)
    assert doctor.find_start(Report(False), config) == own


@pytest.mark.parametrize("mode", ["no", "default"])
def test_compiling_is_not_taken_for_a_step(shard_folder, monkeypatch, mode):
    """The first two steps, one of each kind, take minutes when they are compiled."""
    one, asked = lone_trainer(shard_folder, r1_interval=16), []
    one.config = dataclasses.replace(one.config, compile=mode)

    def seconds(trainer, number):
        asked.append(number)
        return 100.0 if mode != "no" and len(asked) <= 2 else 1.0 + (number == 0)

    monkeypatch.setattr(pace_module, "_step", seconds)
    found = pace_module.measure(one)
    assert (found.step, found.penalised) == (1.0, 2.0)

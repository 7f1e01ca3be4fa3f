"""Shared test data: a drawn caption folder, tiny shards, what two processes compute, where optional real data lies."""

import fcntl
import json
import os
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageDraw

from shards import create
from tests.inception_files import write_partial, write_random

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("TOOLKIT_TEST_DATA", REPOSITORY.parent / "shared"))
"""Real photos and Inception features for the tests that use them; they skip where it is absent."""


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell that starts pytest in the background lets it and all that it starts ignore SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not (REAL_DATA / "data").is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (set TOOLKIT_TEST_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Inception file of random weights; not to be changed."""
    return write_random(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="session")
def partial_weights(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Inception up to layer 768; not to be changed."""
    return write_partial(real_data, tmp_path_factory.mktemp("weights") / "to768.pth")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("something asks for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    with pytest.raises(AssertionError, match="asks for the network"):
        socket.create_connection(("localhost", 9))


COLOURS = ("red", "green", "blue", "orange", "purple", "teal")
SIZES = ((20, 20), (33, 21), (21, 33), (64, 48), (17, 50), (40, 40))


def draw(number: int) -> Image.Image:
    """A coloured disc on a pale ground, different for every number."""
    width, height = SIZES[number % len(SIZES)]
    image = Image.new("RGB", (width, height), (255 - 3 * number, 240, 200 + 2 * number))
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    ImageDraw.Draw(image).ellipse(box, fill=COLOURS[number % len(COLOURS)])
    return image


@pytest.fixture
def caption_folder(tmp_path: Path) -> Path:
    """12 drawn images, some in a subfolder, each with a .txt of the same stem; two have two captions."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i in range(12):
        path = folder / ("more" if i % 3 == 0 else "") / f"disc{i:02d}.{'jpg' if i % 2 else 'png'}"
        draw(i).save(path)
        captions = [f"a {COLOURS[i % len(COLOURS)]} disc"] + ["a drawing"] * (i < 2)
        path.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of 16x16 px in 3 tars, hashing encoder, 7 distinct captions; every fourth sample has two."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "images").mkdir()
    rows = []
    for i in range(24):
        draw(i).save(folder / "images" / f"{i:02d}.png")
        captions = [f"a {COLOURS[i % len(COLOURS)]} disc"] + ["ćevapi drawn as a disc"] * (i % 4 == 0)
        rows.append(json.dumps({"file": f"{i:02d}.png", "captions": captions}, ensure_ascii=False))
    (folder / "images" / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    out = folder / "built"
    create.main(create.CreateOptions(folder / "images", out, 16, encoder="hashing", format="png", samples_per_shard=10))
    return out


class Told(NamedTuple):
    """What the two processes of workers/two_processes.py wrote, by process; to be read only."""

    facts: list[dict]
    tensors: list[dict]
    folder: Path


@pytest.fixture(scope="session")
def two(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """One start for all tests; with pytest-xdist for all its workers, of which the first one starts the processes."""
    from safetensors.torch import load_file

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = base / "two processes"
    with (base / "two processes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "done").exists():
            start_two(shard_folder, odd_shards(tmp_path_factory.mktemp("odd")), out)
            (out / "done").touch()
    return Told([json.loads((out / f"rank_{k}.json").read_text()) for k in range(2)],
                [load_file(out / f"rank_{k}.safetensors") for k in range(2)], out)  # fmt: skip


def start_two(shard_folder: Path, odd: Path, out: Path) -> None:
    from tests.forking import Forked

    out.mkdir(exist_ok=True)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(REPOSITORY / "tests" / "workers" / "two_processes.py"), shard_folder, odd, out]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = Forked(list(map(str, command)), out, environment)
    try:
        said = process.communicate(timeout=600)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-4000:]


def odd_shards(folder: Path) -> Path:
    """7 samples in one shard: neither the samples nor the shards divide by two processes or three workers."""
    (folder / "images").mkdir()
    for i in range(7):
        draw(i).save(folder / "images" / f"{i}.png")
        (folder / "images" / f"{i}.txt").write_text(f"disc number {i}\n", encoding="utf-8")
    create.main(create.CreateOptions(folder / "images", folder / "built", 16, encoder="hashing", format="png"))
    return folder / "built"

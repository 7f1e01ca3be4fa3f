"""The flag that signals set: when it cuts a wait short, and whom it leaves alone."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.conftest import REPOSITORY, draw
from toolkit.data.decoding import decode_image
from toolkit.launching.stopping import BY_FILE, SIGNALS, STOP_FILE, StopRequest, exit_code
from toolkit.run_folder.heartbeat import Heartbeat


@pytest.fixture
def stop(tmp_path):
    request = StopRequest(tmp_path, watch_file=True)
    yield request
    request.restore()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_decoding_cuts_the_wait_short_and_is_no_damaged_image(stop, monkeypatch, number):
    """Decoding takes any Exception for a damaged image; with --workers 0 it is where the waiting is done."""
    file, opened, after = io.BytesIO(), Image.open, []
    draw(1).save(file, "png")

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), number)
        return opened(*arguments, **named)

    monkeypatch.setattr(Image, "open", interrupted)
    assert stop.wait_for(lambda: after.append(decode_image(file.getvalue()))) == number and not after
    assert exit_code(number) == 128 + number


def test_between_waits_a_signal_only_sets_the_flag(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.request == signal.SIGTERM
    assert stop.wait_for(lambda: pytest.fail("there is nothing to wait for any more")) == signal.SIGTERM


def test_a_forked_data_worker_is_not_stopped_by_the_trainers_handler(stop):
    if (child := os.fork()) == 0:
        stop._waiting = True
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(stop.request)
        except BaseException:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_stop_file_is_a_request(stop, tmp_path):
    assert stop.wait_for(lambda: None) == 0
    (tmp_path / STOP_FILE).touch()
    stop._next_look = 0.0
    assert stop.wait_for(lambda: None) == BY_FILE and exit_code(BY_FILE) == 75


def test_the_watchdog_ends_a_process_that_waits_in_vain_and_names_the_silent_one(tmp_path):
    """As when a GPU waits for another process: the main thread is stuck where no Python runs."""
    Heartbeat(tmp_path, 1).beat(41)
    late = time.time() - 60
    path = tmp_path / "heartbeats" / "process_1.json"
    path.write_text(path.read_text().replace('"time": ', f'"time": {late} , "was": '))
    code = (
        "import pathlib, time\nfrom toolkit.run_folder import heartbeat\n"
        f"run = pathlib.Path({str(tmp_path)!r})\n"
        "heartbeat.Watchdog(run, 0, timeout=-4.0, needed=True)\ntime.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "process 1 (pid" in done.stderr and "at step 41" in done.stderr

"""Commands in processes of their own that are forked from one in which torch and the toolkit are imported already.

A start then takes 0.1 s instead of the 4 s of a new Python. What follows is as there: the command runs as `__main__`
with its own arguments, environment, folder and process group, gets signals, and ends with an exit code. Tests of what
comes before (imports by path, launchers' command lines) start a new Python. Plots and the memory estimate, which take
longer than a short training, are left out.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.run", "accelerate.commands.launch", "shards.embed", "tests.running"]
)


class Forked:
    """What of subprocess.Popen tests of commands use. `command`: as for Python, ["-m", MODULE, ...] or [PATH, ...]."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: dict[str, str], stdout: bool = False) -> None:
        """`stdout`: keep that too, for `communicate`."""
        pipes = {number: CONTEXT.Pipe(duplex=False) for number in ((1, 2) if stdout else (2,))}
        writers = {number: writer for number, (_, writer) in pipes.items()}
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # for the first fork
            self._process = CONTEXT.Process(
                target=_become, args=(list(command), str(cwd), environment, writers), daemon=True
            )
            self._process.start()
        self.pid: int = self._process.pid
        self._outputs = {}
        for number, (reader, writer) in pipes.items():
            writer.close()
            self._outputs[number] = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
            reader.close()
        self.stderr = self._outputs[2]

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str | None, str]:
        """(stdout or None, stderr) once it and all that have those are gone."""
        said: dict[int, str] = {}
        readings = [threading.Thread(target=self._read, args=(number, said), daemon=True) for number in self._outputs]
        for reading in readings:
            reading.start()
        for reading in readings:
            reading.join(timeout)
            if reading.is_alive():
                raise subprocess.TimeoutExpired("a forked command", timeout)
        self._process.join(timeout)
        return said.get(1), said[2]

    def _read(self, number: int, said: dict[int, str]) -> None:
        with self._outputs[number] as output:
            said[number] = output.read()


def _become(command: list[str], cwd: str, environment: dict[str, str], outputs: dict[int, Connection]) -> None:
    os.setsid()
    for number, output in outputs.items():
        os.dup2(output.fileno(), number)
        output.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the default, as in a new Python
    multiprocessing.current_process()._config["daemon"] = False  # or it could not start data workers
    tracker = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # a tracker of its own as well, which names what is left over
    with without_plots_and_estimates():
        os._exit(_run(command))


@contextlib.contextmanager
def without_plots_and_estimates(plot: Callable = lambda run: None):
    with (
        mock.patch("toolkit.health.reports.plot_training", plot),
        mock.patch("toolkit.checks.memory.estimate", lambda *arguments: Mute()),
    ):
        yield


class Mute:
    def describe(self) -> str:
        return "memory: not estimated in this test"


def _run(command: list[str]) -> int:
    """Run it as `__main__` to its end, exit functions included. Returns the exit code."""
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            with _forking_workers():
                runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))  # from runpy on
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


@contextlib.contextmanager
def _forking_workers():
    """torchrun, and `accelerate launch` where that calls it, fork their workers as well: a function, not a command."""
    from torch.distributed import run
    from torch.distributed.launcher import api

    class Launch(api.elastic_launch):
        def __init__(self, config, entrypoint) -> None:
            config.start_method = "fork"
            super().__init__(config, _work)

    with mock.patch.object(run, "elastic_launch", Launch), mock.patch.object(api, "elastic_launch", Launch):
        yield


def _work(*command: str) -> None:
    code = _run([word for word in command if word != "-u"])
    if code:
        os._exit(code)

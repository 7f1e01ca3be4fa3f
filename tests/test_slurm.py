"""configs/slurm/train.sbatch without SLURM: srun, scontrol and accelerate are small scripts that note their calls."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "configs" / "slurm" / "train.sbatch"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

SCONTROL = """
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; else echo "scontrol $*" >> "$CALLS"; fi
"""
UNTIL_STOPPED = """
echo started >> "$CALLS"
until [ -e "$RUN/stop" ]; do sleep 0.05; done
echo saved >> "$CALLS"
exit "$CODE"
"""


class Cluster:
    """A folder of stand-ins that comes first on PATH, the job's environment, and the calls noted so far."""

    def __init__(self, folder: Path, srun: str, **environment: str) -> None:
        self.run, self._calls = folder / "my run", folder / "calls"
        (folder / "bin").mkdir()
        self.add("srun", srun)
        self.add("scontrol", SCONTROL)
        self.environment = {
            **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(self._calls),
            "RUN": str(self.run), "DATA": "data/shards", "SLURM_JOB_ID": "20042", "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node-[a-b]", "CODE": "1", **environment,
        }  # fmt: skip

    def add(self, name: str, script: str) -> None:
        path = self.run.parent / "bin" / name
        path.write_text("#!/bin/bash\n" + script)
        path.chmod(0o755)

    def submit(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=self.environment, cwd=REPOSITORY,
                                stderr=subprocess.PIPE, text=True)  # fmt: skip

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def signalled(self, number: int) -> tuple[int, list[str]]:
        """(exit code, calls) of a job that gets the signal once its run has started."""
        job = self.submit()
        give_up = time.monotonic() + 60
        while "started" not in self.calls() and job.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        job.send_signal(number)
        job.communicate(timeout=60)
        return job.returncode, self.calls()


def test_bash_can_read_it_and_slurm_finds_its_options():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    options = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:USR1@120" in options and "#SBATCH --requeue" in options
    before_commands = SCRIPT.read_text().split("\nset -u")[0]  # sbatch reads no option after the first command
    assert before_commands.count("#SBATCH --") == len(options)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_before_the_time_limit_the_run_saves_and_then_the_job_is_queued_again(tmp_path):
    cluster = Cluster(tmp_path, UNTIL_STOPPED)
    code, calls = cluster.signalled(signal.SIGUSR1)
    assert (code, calls) == (1, ["started", "saved", "scontrol requeue 20042"])
    assert not (cluster.run / "stop").exists()


def test_a_run_that_completes_just_then_is_not_queued_again(tmp_path):
    assert Cluster(tmp_path, UNTIL_STOPPED, CODE="0").signalled(signal.SIGUSR1) == (0, ["started", "saved"])


def test_after_sigterm_the_run_saves_but_queueing_is_slurms_business(tmp_path):
    """Preempted jobs it requeues by itself, cancelled ones must stay cancelled."""
    assert Cluster(tmp_path, UNTIL_STOPPED).signalled(signal.SIGTERM) == (1, ["started", "saved"])


def test_a_run_that_does_not_end_in_time_is_queued_again_all_the_same(tmp_path):
    hanging = 'echo $$ > "$RUN/pid"; echo started >> "$CALLS"; exec sleep 60 2> /dev/null'
    cluster = Cluster(tmp_path, hanging, GRACE="1")
    try:
        assert cluster.signalled(signal.SIGUSR1) == (1, ["started", "scontrol requeue 20042"])
    finally:
        os.kill(int((cluster.run / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_ends_by_itself_gives_the_job_its_exit_code(tmp_path, code):
    cluster = Cluster(tmp_path, f'echo "srun $1" >> "$CALLS"; [ ! -e "$RUN/stop" ] || exit 9; exit {code}')
    cluster.run.mkdir()
    (cluster.run / "stop").touch()  # of the job's last life
    job = cluster.submit()
    said = job.communicate(timeout=60)[1]
    assert (job.returncode, cluster.calls()) == (code, ["srun --kill-on-bad-exit=1"]), said


def test_each_machine_starts_one_launcher_with_its_own_rank(tmp_path):
    """The stand-in srun runs the command twice as two machines would; options with spaces arrive whole."""
    cluster = Cluster(tmp_path, 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit 1; done')
    cluster.add("accelerate", 'printf \'%s\\n\' "$@" > "$CALLS.$SLURM_NODEID"')
    job = cluster.submit("--diffaug", "color, flip")
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 0, said
    for rank in (0, 1):
        launched = Path(f"{tmp_path}/calls.{rank}").read_text().splitlines()
        assert launched == [
            "launch", "--config_file", "configs/accelerate/two_machines.yaml",
            "--num_machines", "2", "--num_processes", "8", "--machine_rank", str(rank),
            "--main_process_ip", "node-a", "--main_process_port", "20042", "toolkit/train.py",
            "--config", "configs/multi_gpu.yaml", "--data", "data/shards", "--out_dir", str(cluster.run),
            "--diffaug", "color, flip",
        ]  # fmt: skip


@pytest.mark.parametrize("missing", ["RUN", "DATA"])
def test_what_is_missing_is_named(tmp_path, missing):
    cluster = Cluster(tmp_path, "echo started >> $CALLS")
    del cluster.environment[missing]
    job = cluster.submit()
    assert f"set {missing} to the" in job.communicate(timeout=60)[1] and job.returncode != 0 and not cluster.calls()

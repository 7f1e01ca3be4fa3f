"""What two processes compute, one scenario after the other: torchrun ... two_processes.py SHARDS ODD_SHARDS OUT.

Each process writes OUT/rank_K.json and OUT/rank_K.safetensors, and runs leave their folders in OUT: the fixture `two`
(conftest.py), by which tests compare the processes with each other and with a single one. One start serves all
scenarios, for a start takes longer than any of them.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from benchmarks import scaling_worker
from tests.running import QUIET
from toolkit import doctor
from toolkit.checks.memory import MemoryEstimate
from toolkit.checks.micro_batch import agreed, largest_that_fits
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import Diverged, NotSaved, UserError
from toolkit.health.score import Scoring
from toolkit.launching import launch, start
from toolkit.launching.processes import Processes
from toolkit.training.run import Run
from toolkit.training.trainer import Trainer

STILL = {"lr_g": 1e-9, "lr_d": 1e-9, "r1_interval": 1}
"""So small that G's gradient does not depend on how D's step rounded."""
LOSSES = {
    "plain": {"r1_penalty": 0.0},
    "r1": {"r1_penalty": 1.0},
    "r1 and r2": {"r1_penalty": 1.0, "r2_penalty": 0.5},
    "lecam": {"r1_penalty": 0.0, "lecam": 0.3, "mismatch_weight": 0.0},
    "relativistic": {"r1_penalty": 1.0, "r2_penalty": 1.0, "loss": "relativistic"},
    "matching": {
        "match_weight": 0.5,
        "g_match_weight": 0.5,
        "match_width": 8,
        "match_captions": 3,
        "loss": "relativistic",
        "fresh_for_g": True,
        "pairs": True,
        "std_group": 2,
        "minibatch_std": True,
    },
    "nonsaturating": {"loss": "nonsaturating", "d_steps": 2, "augment_p": 0.5},
}
EVERYTHING = {"r2_penalty": 0.5, "lecam": 0.1, "d_steps": 2, "adaptive_augment": True, "adaptive_r1": True,
              "ada_kimg": 0.5, "r1_interval": 4, "grad_clip": 1.0,
              "ema_profiles": "0.02,0.1"}  # fmt: skip
SCALED = {"resolution": 16, "base_ch": 4, "batch": 4, "steps": 3}
"""A benchmark of two processes at a size of seconds."""
INSTEAD = {"d_scales": 0, "r1_penalty": 0.0, "r2_penalty": 0.0}
"""Of D's own scales, with `frozen_backbone`."""


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """With beta1 = 0 Adam's first moment is the last gradient itself."""
    states = {name: phase.optimizer.state_dict()["state"] for name, phase in trainer.phases.items()}
    return {f"{name}.{i}": moments["exp_avg"] for name, state in states.items() for i, moments in state.items()}


def after_two_steps(trainer: Trainer) -> dict[str, torch.Tensor]:
    for _ in range(2):
        trainer.step()
    trainer.close()
    return gradients(trainer) | {"anchors": trainer.adaptive.anchors, "gate": trainer.gate.sums}


def digests(trainer: Trainer) -> dict[str, str]:
    """SHA-256 of the bytes of each network and optimizer."""
    states = {"G": trainer.unwrap(trainer.G).state_dict(), "D": trainer.unwrap(trainer.D).state_dict(),
              "EMA": trainer.ema.module.state_dict()}  # fmt: skip
    states |= {name: average.module.state_dict() for name, average in trainer.profiles.items()}
    for name, phase in trainer.phases.items():
        moments = phase.optimizer.state_dict()["state"]
        states[f"Adam {name}"] = {f"{i}.{key}": value for i in moments for key, value in moments[i].items()}
    return {
        name: hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest()
        for name, state in states.items()
    }


class Scenarios:
    def __init__(self, shards: Path, odd_shards: Path, out: Path) -> None:
        self.shards, self.odd_shards, self.out = shards, odd_shards, out
        self.accelerator = launch.start_accelerator(ResolvedConfig(timeout=120))
        self.processes = Processes(self.accelerator, 120)
        self.rank = self.processes.index
        self.facts: dict[str, object] = {"world": self.processes.count}
        self.tensors: dict[str, torch.Tensor] = {}

    def trainer(self, shards: Path | None = None, **options) -> Trainer:
        folder = shards or self.shards
        config = ResolvedConfig(**{"data": str(folder), "r1_interval": 3, **QUIET, **options})
        return Trainer(config, self.accelerator, ShardSet(folder))

    def run(self, name: str, **options) -> Run:
        """As toolkit.train makes it, resuming what is there."""
        trainer = self.trainer(out_dir=str(self.out / name), **options)
        begin = start.open_run_folder(trainer.config, self.processes)
        if begin.checkpoint:
            trainer.resume(begin.checkpoint)
        return Run(trainer, self.processes, Scoring())

    def compare_gradients(self) -> None:
        for name, options in LOSSES.items():
            for parts in (1, 2):
                found = after_two_steps(self.trainer(**STILL, **options, batch_gpu=4 // parts))
                self.tensors |= {f"{name}/{parts}/{key}": value.clone() for key, value in found.items()}

    def stay_together(self) -> None:
        for norm, images in (("group", 2), ("batch", 4)):
            trainer = self.trainer(**EVERYTHING, g_norm=norm, batch_gpu=images)
            seen = set()
            for _ in range(20):
                trainer.fetch()
                seen |= {row for part in trainer.feed._ready for batch in part for row in range(8)[batch.rows]}
                trainer.step()
            trainer.average_statistics()
            trainer.close()
            self.facts[f"digests {norm}"], self.facts["rows"] = digests(trainer), sorted(seen)
            self.facts["adaptive"] = trainer.adaptive.state()

    def drift(self) -> None:
        run = self.run("drift", iters=20, check_ranks_every=4)
        trainer, step = run.trainer, run.trainer.step

        def drifting():
            stats = step()
            if trainer.step_number == 3 and self.rank == 1:
                with torch.no_grad():
                    trainer.phases["D"].parameters[0].view(-1)[0] += 1e-6
            return stats

        trainer.step = drifting
        self.facts["drift"] = self.failure(run)

    def nan_on_one_rank(self) -> None:
        run = self.run("nan", iters=20, on_divergence="stop")
        trainer, shown, step = run.trainer, run.trainer.objective.shown, run.trainer.step

        def poisoned(inputs):
            real, fake = shown(inputs)
            return (real * float("nan"), fake) if trainer.step_number == 6 and self.rank == 1 else (real, fake)

        def remembering():
            if trainer.step_number == 6:
                self.before = {name: phase.network.state_dict() for name, phase in trainer.phases.items()}
                self.before = {n: {k: v.clone() for k, v in state.items()} for n, state in self.before.items()}
            return step()

        trainer.objective.shown, trainer.step = poisoned, remembering
        self.facts["nan"] = self.failure(run)
        self.facts["nan step"] = trainer.step_number
        self.facts["nan moved"] = [
            f"{name}.{key}"
            for name, phase in trainer.phases.items()
            for key, value in phase.network.named_parameters()
            if not torch.equal(value, self.before[name][key])
        ]

    def failure(self, run: Run) -> list[str]:
        try:
            run.fit()
        except UserError as error:
            return [type(error).__name__, str(error)]
        return []

    def signal_to_one(self) -> None:
        """'whole' is the same training undisturbed; test_launch.py makes it a third time, with a killed process."""
        self.run("whole", iters=8).fit()
        run = self.run("signalled", iters=8)
        loss = run.trainer.generator_loss

        def signalled(batch, noise):
            if run.trainer.step_number == 3 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return loss(batch, noise)

        run.trainer.generator_loss = signalled
        run.fit()
        self.facts["request"] = [run.request, run.trainer.step_number]
        again = self.run("signalled", iters=8)
        self.facts["resumed at"] = again.trainer.step_number
        again.fit()

    def odd_sizes(self) -> None:
        run = self.run("odd", shards=self.odd_shards, iters=5, batch=4, workers=3)
        run.fit()
        self.facts["odd"] = [run.trainer.step_number, run.trainer.position]

    def mirror(self) -> None:
        self.run("mirrored", iters=3, r1_interval=2, mirror=True).fit()

    def frozen_features(self) -> None:
        weights = self.out / "test_vit.safetensors"

        def save() -> None:
            torch.manual_seed(0)
            save_file(timm.create_model("test_vit", pretrained=False).state_dict(), weights)

        self.processes.on_main(save)
        self.run("frozen", iters=1, frozen_backbone="timm/test_vit", frozen_weights=str(weights), **INSTEAD).fit()

    def try_batch_gpu(self) -> None:
        """Process 1 has room for four images in G's phase, the main one for all eight."""
        plain, tried = (self.trainer(batch=16) for _ in range(2))
        loss_of = tried.generator_loss

        def limited(batch, noise):
            if self.rank == 1 and len(batch.images) > 4:
                raise torch.OutOfMemoryError("made up")
            return loss_of(batch, noise)

        tried.generator_loss = limited
        found = largest_that_fits(tried, 8)
        self.facts["fits"] = [found, agreed(tried, found)]
        tried.generator_loss = loss_of
        for _ in range(2):
            tried.step(), plain.step()
        self.facts["as if never tried"] = torch.equal(tried.fingerprint(), plain.fingerprint())

    def examine(self) -> None:
        """The doctor. Its command with two processes: test_doctor.py, where they cannot train."""
        folder, said = self.out / "examined", io.StringIO()
        folder.mkdir(exist_ok=True)
        config = TrainConfig(**{**QUIET, "data": str(self.shards), "out_dir": str(folder / "run"), "iters": 50})
        needed = MemoryEstimate(4, "no", 1000, 1000, 1000, 1000, (0, 1000), (0, 1000))
        with (
            mock.patch("toolkit.checks.memory.estimate", return_value=needed),
            mock.patch.object(Accelerator, "end_training"),
            contextlib.redirect_stdout(said),
        ):
            try:
                doctor.main(config)
            except SystemExit as end:
                self.facts["doctor"] = [end.code, said.getvalue().splitlines()]

    def measure(self) -> None:
        """The benchmark's turns; what comes of them is test_scaling.py's."""
        options = scaling_worker.WorkerOptions(self.shards, **SCALED)
        turns = ("parity", "steps", "silent", "split", "reduce")
        found = list(scaling_worker.Worker(options).answers(turns))
        self.facts["turns"] = dict(zip(turns, found, strict=True))

    def exchange(self) -> None:
        """Processes: the main one's failure is everybody's, of the same kind."""
        processes, kinds = self.processes, (UserError, NotSaved, Diverged)
        self.facts["largest"] = processes.largest(7 if self.rank == 1 else 3)
        self.facts["equal"] = processes.equal(torch.tensor([1, self.rank]))
        self.facts["failures"] = []
        for kind in (*kinds, None):

            def fail(kind=kind):
                if kind:
                    raise kind("the disk is full")

            try:
                processes.on_main(fail)
                self.facts["failures"].append("")
            except UserError as error:
                self.facts["failures"].append(f"{type(error).__name__}: {error}")
        try:
            self.trainer(sync_bn=True, g_norm="batch")
        except UserError as error:
            self.facts["sync_bn"] = str(error)

    def write(self) -> None:
        (self.out / f"rank_{self.rank}.json").write_text(json.dumps(self.facts))
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()},
                  self.out / f"rank_{self.rank}.safetensors")  # fmt: skip


def main() -> None:
    scenarios = Scenarios(*map(Path, sys.argv[1:4]))
    for scenario in ("compare_gradients", "stay_together", "exchange", "signal_to_one", "odd_sizes", "mirror",
                     "frozen_features", "try_batch_gpu", "examine", "measure", "drift", "nan_on_one_rank"):  # fmt: skip
        getattr(scenarios, scenario)()
    scenarios.write()
    scenarios.accelerator.end_training()


if __name__ == "__main__":
    main()

"""What a run writes down while it trains: training_log.json, progress bar, wandb."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from toolkit.config import TrainConfig
from toolkit.durable import write_whole

LOG_NAME = "training_log.json"


class Window:
    """Scalars of the steps since the last log line, kept as tensors: reading them would wait for the GPU."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, stats: dict[str, Tensor]) -> None:
        for name, value in stats.items():
            self._values.setdefault(name, []).append(value.detach())

    def __len__(self) -> int:
        return max((len(values) for values in self._values.values()), default=0)

    def means(self, accelerator) -> dict[str, float]:
        """Mean of each scalar over the window's steps and all processes; empties the window. All processes call it."""
        names = sorted(self._values)
        means = torch.stack([torch.stack(self._values[name]).float().mean() for name in names])
        self._values.clear()
        return dict(zip(names, accelerator.reduce(means, reduction="mean").tolist(), strict=True))


class TrainingLog:
    """training_log.json: one JSON object a line. On resume, lines after the checkpoint's step are dropped."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / LOG_NAME
        kept = [line for line in read_log(run) if line["step"] <= step] if step else []
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, line: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(run: Path) -> list[dict]:
    """The lines of training_log.json; a half line at the end, left by a kill, is passed over."""
    lines = []
    if (run / LOG_NAME).is_file():
        for text in (run / LOG_NAME).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


class Progress:
    """Progress bar on stderr of the main process."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._bar = tqdm(total=total, initial=done, disable=not shown, unit="step", dynamic_ncols=True, mininterval=1)

    def advance(self) -> None:
        self._bar.update()

    def show(self, line: dict) -> None:
        shown = {name: f"{line[name]:.2f}" for name in ("loss_d", "loss_g", "logit_real", "logit_fake") if name in line}
        self._bar.set_postfix(shown | {"images/s": f"{line['images_per_second']:.1f}"})

    def say(self, message: str) -> None:
        if not self._bar.disable:
            self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class WandbLog:
    """Best effort: whatever goes wrong with wandb is said once and never stops the training."""

    def __init__(self, config: TrainConfig, settings: dict, run_id: str | None) -> None:
        self._run = None
        if config.wandb == "disabled":
            return
        try:
            if config.wandb == "online" and not (
                os.environ.get("WANDB_API_KEY") or Path.home().joinpath(".netrc").exists()
            ):
                raise RuntimeError("no API key (run `wandb login` or set WANDB_API_KEY)")
            import wandb

            self._wandb = wandb
            self._run = wandb.init(
                project=config.wandb_project, name=Path(config.out_dir).name, dir=config.out_dir, mode=config.wandb,
                id=run_id, resume="allow", config=settings,
                settings=wandb.Settings(x_disable_meta=True, save_code=False, silent=True),  # argv may hold secrets
            )  # fmt: skip
        except Exception as error:
            self._give_up(error)

    @property
    def run_id(self) -> str | None:
        return self._run.id if self._run else None

    def log(self, line: dict) -> None:
        self._try(lambda: self._run.log(line))

    def log_picture(self, path: Path, step: int) -> None:
        self._try(lambda: self._run.log({"samples": self._wandb.Image(str(path)), "step": step}))

    def close(self) -> None:
        self._try(lambda: self._run.finish())

    def _try(self, action) -> None:
        if self._run is not None:
            try:
                action()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        tqdm.write(f"train: wandb is off ({' '.join(str(error).split())[:160]}); local logs go on", file=sys.stderr)

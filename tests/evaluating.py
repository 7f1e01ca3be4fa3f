"""A stand-in for evaluation.during_training: scores by step, at no cost, and notes of when it was asked."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from PIL import Image

import evaluation
from toolkit.training.trainer import Trainer


class FakeEvaluator:
    """`calls`: the steps at which this process evaluated. It leaves the global random state in disorder."""

    def __init__(self, scores: Callable[[int], dict] | None = None, at: dict[int, Callable[[], None]] | None = None):
        """`scores`: of a step. `at`: what happens during the evaluation of a step."""
        self.scores = scores or (lambda step: {"fid": 100.0 - step, "recall": step / 100})
        self.at, self.calls = at or {}, []

    def evaluator(self, config, shards, processes) -> Callable[[Trainer], dict | None]:
        self.main = processes.main
        return self

    def __call__(self, trainer: Trainer) -> dict | None:
        step = trainer.step_number
        self.calls.append(step)
        random.seed(), np.random.seed(), torch.seed()
        self.at.get(step, lambda: None)()
        if not self.main:
            return None
        image = Image.new("RGB", (4, 2), (step, 0, 0))
        protocol = {"step": step, "prompts": "ћевапи"}
        return {"scores": self.scores(step), "protocol": protocol, "notes": ["biased"], "images": image}


@contextmanager
def evaluating(fake: FakeEvaluator, metric: str = "fid", higher_is_better: bool = False) -> Iterator[FakeEvaluator]:
    """toolkit.train takes it for the evaluation."""
    stand_in = SimpleNamespace(
        check=lambda config, shards: None,
        evaluator=fake.evaluator,
        score_name=lambda config: (metric, higher_is_better),
    )
    with mock.patch.object(evaluation, "during_training", stand_in, create=True):
        yield fake

"""Right name, right width, other weights: noticed wherever captions and vectors meet."""

import json
import re
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from evaluation import clip_score
from evaluation.clip_score import ClipScoreOptions
from shards import create, embed
from shards.create import CreateOptions
from shards.embed import EmbedOptions
from shards.inspect import __main__ as inspect_command
from shards.inspect.__main__ import InspectOptions
from tests.running import QUIET, train
from tests.tiny_clip import NAME, save_weights
from toolkit import doctor, generate
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.generate import GenerateOptions

OTHER = r"cosine -?0\.\d+ on the probe captions"
HASHES = r"\(SHA-256 of the text tower [0-9a-f]{12} against [0-9a-f]{12}\)"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def shards(caption_folder: Path, weights: list[Path], tmp_path: Path) -> Path:
    options = {"encoder": NAME, "encoder_weights": weights[0], "device": "cpu", "workers": 1}
    create.main(CreateOptions(caption_folder, tmp_path / "shards", 16, **options))
    return tmp_path / "shards"


@pytest.fixture
def embedded_by_others(shards: Path, weights: list[Path], tmp_path: Path) -> Path:
    """The same shards under the embeddings of the other file of weights."""
    other = shutil.copytree(shards, tmp_path / "other")
    embed.main(EmbedOptions(data=other, encoder=NAME, encoder_weights=weights[1], device="cpu"))
    return other


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    train(shards, tmp_path / "run", iters=1, cond_dim=32)
    return tmp_path / "run"


def test_in_training(run: Path, shards: Path, embedded_by_others: Path) -> None:
    with pytest.raises(UserError, match=f"on embeddings of another encoder: same name {NAME}.*{OTHER} {HASHES}"):
        train(embedded_by_others, run, iters=2, cond_dim=32)
    train(shards, run, iters=2, cond_dim=32)


def test_before_training(run: Path, embedded_by_others: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    config = ResolvedConfig(data=str(embedded_by_others), out_dir=str(run), cond_dim=32, iters=2, **QUIET)
    with pytest.raises(SystemExit) as ended:
        doctor.main(config)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert ended.value.code == 1
    assert re.search(f"FAIL +resume +.*another encoder: same name {NAME}.*{OTHER} {HASHES}", capsys.readouterr().out)


@pytest.mark.parametrize("which", [0, 1])
def test_in_inference(run: Path, weights: list[Path], tmp_path: Path, which: int) -> None:
    options = GenerateOptions(
        checkpoint=str(run), prompt="a red disc", encoder_weights=str(weights[which]), out_dir=str(tmp_path / "out")
    )
    if which == 0:
        generate.main(options)
        assert list((tmp_path / "out").glob("*.png"))
        return
    with pytest.raises(UserError, match=f"'{NAME}' is not the one of the training data: {OTHER}.*{HASHES}"):
        generate.main(options)
    assert not list((tmp_path / "out").glob("*.png"))


class TestInEvaluation:
    def score(self, run: Path, weights: list[Path], prompts: Path, **options) -> dict:
        judge = {"model": "tiny-test", "pretrained": "local", "clip_weights": weights[1], "device": "cpu"}
        return clip_score.score(ClipScoreOptions(fake=str(run), prompts=str(prompts), count=4, **judge, **options))

    def test_prompts_of_shards(self, run: Path, weights, shards: Path, embedded_by_others: Path) -> None:
        assert -1 <= self.score(run, weights, shards)["mean_cosine"] <= 1
        with pytest.raises(UserError, match=f"embedded by another encoder than .*{OTHER} {HASHES}"):
            self.score(run, weights, embedded_by_others)

    def test_prompts_of_a_file(self, run: Path, weights, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("a red disc\na blue disc\na teal disc\na green disc\n")
        found = self.score(run, weights, tmp_path / "prompts.txt", encoder_weights=weights[0])
        assert found["protocol"]["n_fake"] == 4
        with pytest.raises(UserError, match=f"is not the one of the training data: {OTHER}"):
            self.score(run, weights, tmp_path / "prompts.txt", encoder_weights=weights[1])


@pytest.mark.parametrize("which", [0, 1])
def test_in_inspection(shards: Path, weights: list[Path], capsys, which: int) -> None:
    options = InspectOptions(shards, encoder_weights=weights[which], json=True)
    if which == 0:
        inspect_command.main(options)
    else:
        with pytest.raises(UserError, match="failed: encoder"):
            inspect_command.main(options)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert (checks["encoder"]["state"], checks["embeddings"]["state"]) == ("BAD" if which else "ok", "ok")


def test_when_shards_are_built(caption_folder: Path, weights: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    first, second = (
        EmbedOptions(caption_folder, folder, encoder=NAME, encoder_weights=path, device="cpu") for path in weights
    )
    embed.main(first)
    with pytest.raises(UserError, match=f"another encoder: same name {NAME}, other weights: {OTHER} {HASHES}"):
        embed.main(second)

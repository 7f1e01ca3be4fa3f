"""From images to scores on a machine without network: whoever opens a connection fails."""

import json
from pathlib import Path

from evaluation.__main__ import listed
from evaluation.__main__ import main as evaluate
from evaluation.options import EvaluationOptions
from shards import create
from tests.inception_files import write_random
from tests.running import train
from toolkit import generate
from toolkit.command_line import parse
from toolkit.run_folder.records import read_log


def test_build_train_resume_draw_and_score(no_network, caption_folder: Path, tmp_path: Path, capsys):
    shards, run, weights = tmp_path / "shards", tmp_path / "run", write_random(tmp_path / "random.pth")
    create.main(create.CreateOptions(caption_folder, shards, 16, encoder="hashing", workers=1))
    train(shards, run, iters=10)
    train(shards, run, iters=20)
    assert [line["step"] for line in read_log(run)] == list(range(1, 21))
    generate.main(generate.GenerateOptions(str(run), prompt="a disc", seeds="0-1", out_dir=str(tmp_path / "drawn")))
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3
    capsys.readouterr()
    arguments = ["--real", shards, "--fake", run, "--weights", weights, "--feature_layer", 64, "--allow_few", "--count",
                 6, "--cache", tmp_path / "cache", "--metrics", "fid,kid,diversity,memorisation"]  # fmt: skip
    evaluate(parse(EvaluationOptions, listed(list(map(str, arguments)))))
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["fid_64"] > 0 and scores["kid_64"] is not None and scores["nearest_distance_64"] > 0

"""A folder of KEY.npy: the same bytes from any number of processes and kills, and of one encoder and precision."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards import embed
from shards.embed import EmbedOptions
from shards.embedding_folder import load_identity, load_record
from tests.mortal import Killed, Mortal, launch_two
from tests.tiny_clip import NAME, save_weights
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("clip"), 1)[0]


def embed_by(weights: Path | None, source: Path, out: Path, **options) -> None:
    """Two captions a unit: five units of the eight distinct captions, or four."""
    how = {"encoder": NAME, "encoder_weights": weights} if weights else {"encoder": "hashing"}
    embed.main(EmbedOptions(source, out, device="cpu", **{"batch": 2, **how, **options}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shares_give_the_bytes_of_one(caption_folder: Path, tmp_path: Path, weights: Path, capsys) -> None:
    embed_by(weights, caption_folder, tmp_path / "one")
    expected = contents(tmp_path / "one")
    assert len(expected) == 14 and len(load_record(tmp_path / "one")) == 12
    for count in (2, 3, 9):
        out = tmp_path / f"of-{count}"
        for index in range(count - 1, -1, -1):
            capsys.readouterr()
            embed_by(weights, caption_folder, out, share=f"{index}/{count}")
            assert bool(list(out.rglob("*.npy"))) == (index == 0)
            assert ("others' are missing" in capsys.readouterr().out) == (index > 0)
        assert contents(out) == expected


def test_a_caption_is_computed_once_and_in_the_company_of_its_unit(
    caption_folder: Path, tmp_path: Path, weights: Path, monkeypatch
) -> None:
    asked = []
    real = OpenClipEncoder.encode
    monkeypatch.setattr(OpenClipEncoder, "encode", lambda self, c, **k: asked.append(list(c)) or real(self, c, **k))
    embed_by(weights, caption_folder, tmp_path / "out")
    units = [captions for captions in asked if "a photo of a plate of food" not in captions and captions != ["a"]]
    assert sorted(caption for unit in units for caption in unit) == sorted(
        {"a drawing", *(f"a {colour} disc" for colour in ("red", "green", "blue", "orange", "purple", "teal"))}
    )
    assert max(map(len, units)) == 2 and [len(c) for unit in units for c in unit] == sorted(
        len(c) for unit in units for c in unit
    )


@pytest.mark.dist
def test_two_at_the_same_time(caption_folder: Path, tmp_path: Path) -> None:
    embed_by(None, caption_folder, tmp_path / "one")
    out = tmp_path / "two"
    launch_two("--input_dir", str(caption_folder), "--output_dir", str(out), "--encoder", "hashing", "--batch", "2")
    assert contents(out) == contents(tmp_path / "one")


def test_a_kill_at_any_point_costs_nothing_finished(caption_folder: Path, tmp_path: Path) -> None:
    """From a folder with other captions: no vector of theirs may stay under the new ones, nor the other way round."""
    first = tmp_path / "first"
    embed_by(None, caption_folder, first)
    edited = shutil.copytree(caption_folder, tmp_path / "edited")
    (edited / "disc02.txt").write_text("another drawing\nand more")
    (edited / "more/disc03.txt").write_text("a yellow disc")
    last, alive = 0, False
    while not alive:
        out = shutil.copytree(first, tmp_path / f"killed-{last}")
        with pytest.MonkeyPatch.context() as patch:
            Mortal(patch, last)
            try:
                embed_by(None, edited, out)
                alive = True
            except Killed:
                pass
        back = shutil.copytree(out, tmp_path / f"back-{last}")
        embed_by(None, edited, out)
        assert_of(edited, out)
        embed_by(None, caption_folder, back)
        assert_of(caption_folder, back)
        assert not [path for path in (*out.rglob(".*"), *back.rglob(".*"))]
        last += 1
    assert last > 10


def assert_of(source: Path, out: Path) -> None:
    for path in source.rglob("*.txt"):
        expected = HashingEncoder().encode(path.read_text().splitlines()).numpy()
        found = np.atleast_2d(np.load((out / path.relative_to(source)).with_suffix(".npy")))
        assert (found == expected).all()


class TestOneEncoder:
    def test_precisions_do_not_mix(self, caption_folder: Path, tmp_path: Path, weights: Path) -> None:
        embed_by(weights, caption_folder, tmp_path / "out")
        assert load_identity(tmp_path / "out").precision == "fp32"
        fields = json.loads((tmp_path / "out/encoder.json").read_text())
        (tmp_path / "out/encoder.json").write_text(json.dumps(fields | {"precision": "fp16"}))
        before = contents(tmp_path / "out")
        with pytest.raises(UserError, match="embedded in fp16, not in fp32: .* must not mix; pass --precision fp16"):
            embed_by(weights, caption_folder, tmp_path / "out")
        assert contents(tmp_path / "out") == before

    def test_a_folder_from_before_precision_was_recorded(self, caption_folder: Path, tmp_path: Path, weights) -> None:
        embed_by(weights, caption_folder, tmp_path / "out")
        fields = json.loads((tmp_path / "out/encoder.json").read_text())
        kept = {name: fields[name] for name in ("name", "dimension", "probe_captions", "probe_vectors")}
        (tmp_path / "out/encoder.json").write_text(json.dumps(kept))
        (tmp_path / "out/disc05.npy").unlink()
        embed_by(weights, caption_folder, tmp_path / "out")
        assert (tmp_path / "out/disc05.npy").is_file()

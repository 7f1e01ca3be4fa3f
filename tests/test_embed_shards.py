"""New embeddings for shards that exist: beside the tars, the same from any number of processes, safe against kills."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards import embed
from shards.embed import EmbedOptions
from shards.embedding import sidecar_rows
from tests.mortal import Killed, Mortal, launch_two
from tests.tiny_clip import NAME, save_weights
from toolkit.data.dataset import read_decoded
from toolkit.data.images import to_pil
from toolkit.data.shard_format import MANIFEST_NAME, Manifest
from toolkit.data.shard_reader import ShardSet
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import OpenClipEncoder
from toolkit.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def loaded_once(monkeypatch) -> None:
    """Commands in a row load the same encoder; each time it takes three times as long as embedding these samples."""
    monkeypatch.setattr(OpenClipEncoder, "load", functools.cache(OpenClipEncoder.load))


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shard_folder, tmp_path / "copy")


def embed_by(folder: Path, weights: Path | None, **options) -> None:
    """`weights` None: the hashing encoder."""
    how = {"encoder": NAME, "encoder_weights": weights} if weights else {"encoder": "hashing"}
    embed.main(EmbedOptions(data=folder, device="cpu", **how, **options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_embedded_by(folder: Path, weights: Path | None) -> None:
    """Every vector is what the encoder makes of its caption, to the rounding of float16."""
    encoder = OpenClipEncoder.load(NAME, weights) if weights else HashingEncoder()
    shards = ShardSet(folder)
    assert shards.manifest.encoder.cosine(encoder) > 0.9999
    for i in range(len(shards)):
        sample = shards.read(i)
        assert (sample.vectors - encoder.encode(list(sample.captions))).abs().max() < 1e-3


def test_tars_stay_as_they_are_and_all_else_is_new(shard_folder: Path, copy: Path, weights: list[Path], capsys) -> None:
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in copy.glob("*.tar")}
    old = ShardSet(shard_folder)
    embed_by(copy, weights[0])
    assert "embedded 24 samples" in capsys.readouterr().out
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in copy.glob("*.tar")} == before
    assert_embedded_by(copy, weights[0])
    new = ShardSet(copy)
    for i in range(24):
        assert (new.read(i).image, new.read(i).captions) == (old.read(i).image, old.read(i).captions)
    manifest = new.manifest
    assert manifest.fingerprint != old.manifest.fingerprint and manifest.encoder.name == NAME
    for file in manifest.files:
        assert (copy / file.name).stat().st_size == file.bytes and file_sha256(copy / file.name) == file.sha256
    assert file_sha256(copy / manifest.index_name) == manifest.index_sha256
    rows = [np.load(copy / sidecar.name, allow_pickle=False) for sidecar in manifest.vectors]
    assert [array.shape for array in rows] == [(13, 32), (12, 32), (5, 32)]  # every fourth sample has two captions
    assert all(array.dtype == np.float16 for array in rows)
    assert np.abs(np.linalg.norm(np.concatenate(rows).astype(np.float64), axis=1) - 1).max() < 1e-3


def test_encoders_follow_each_other_and_nothing_is_left(shard_folder: Path, copy: Path, weights, capsys) -> None:
    names = {name for name in contents(shard_folder) if name != "index.npy"}
    for which in (weights[0], weights[1], None):
        embed_by(copy, which)
        manifest = Manifest.load(copy)
        assert set(contents(copy)) == names | {manifest.index_name} | {file.name for file in manifest.vectors}
        assert_embedded_by(copy, which)
    before, _ = contents(copy), capsys.readouterr()
    embed_by(copy, None)
    assert "holds the embeddings of hashing already" in capsys.readouterr().out and contents(copy) == before
    assert [path for path in copy.iterdir() if path.is_dir()] == []


def test_a_whole_text_is_one_caption(copy: Path, weights: list[Path]) -> None:
    manifest = Manifest.load(copy)
    replace(manifest, whole_texts=True).save(copy)
    embed_by(copy, weights[0])
    assert_embedded_by(copy, weights[0])
    assert ShardSet(copy).read(0).captions == ("a red disc ćevapi drawn as a disc",)


def test_damaged_embeddings_are_replaced_and_damaged_captions_named(copy: Path, weights: list[Path]) -> None:
    row = ShardSet(copy).index[12].tolist()
    tar = copy / "shard-00001.tar"
    with tar.open("r+b") as file:
        file.seek(row[5])
        file.write(bytes(row[6]))
    embed_by(copy, weights[0])
    assert_embedded_by(copy, weights[0])
    with tar.open("r+b") as file:
        file.seek(row[3])
        file.write(b"\xff")
    before = contents(copy)
    with pytest.raises(UserError, match=r"shard-00001.tar, sample '000000012' cannot be embedded: .*utf-8"):
        embed_by(copy, weights[1])
    kept = contents(copy)
    assert {name: kept[name] for name in before} == before
    assert {name[:16] for name in kept.keys() - before.keys()} == {"shard-00000.text"}  # finished, listed nowhere


class TestImages:
    def expected(self, folder: Path, weights: Path) -> torch.Tensor:
        encoder, shards = OpenClipEncoder.load(NAME, weights), ShardSet(folder)
        images = [to_pil(read_decoded(shards, i)[1]) for i in range(len(shards))]
        assert {image.size for image in images} == {(16, 16)}
        inputs = torch.stack([encoder.preprocess(image) for image in images])
        return torch.nn.functional.normalize(encoder.model.encode_image(inputs), dim=1)

    def test_a_row_per_sample(self, copy: Path, weights: list[Path], monkeypatch) -> None:
        monkeypatch.setattr(sidecar_rows, "IMAGES_AT_ONCE", 4)
        embed_by(copy, weights[0], image=True)
        assert_embedded_by(copy, weights[0])
        found = [np.load(copy / file.name, allow_pickle=False) for file in Manifest.load(copy).image_vectors]
        assert [len(array) for array in found] == [10, 10, 4]
        found = torch.from_numpy(np.concatenate(found).astype(np.float32))
        assert (found - self.expected(copy, weights[0])).abs().max() < 1e-3
        assert (found - self.expected(copy, weights[1])).abs().max() > 0.1

    def test_they_go_with_their_encoder(self, copy: Path, weights: list[Path]) -> None:
        embed_by(copy, weights[0])
        assert Manifest.load(copy).image_vectors == ()
        embed_by(copy, weights[0], image=True)
        with_images = Manifest.load(copy)
        assert len(with_images.image_vectors) == 3
        embed_by(copy, weights[0])
        assert Manifest.load(copy) == with_images
        embed_by(copy, weights[1])
        assert Manifest.load(copy).image_vectors == () and not list(copy.glob("*.image*"))

    def test_images_of_any_size_are_fitted_first(self, copy: Path, weights: list[Path]) -> None:
        replace(Manifest.load(copy), fit="stretch", resolution=8).save(copy)
        embed_by(copy, weights[0], image=True)
        encoder, sample = OpenClipEncoder.load(NAME, weights[0]), ShardSet(copy).read(0)
        (copy / "first.png").write_bytes(sample.image)
        fitted = Image.open(copy / "first.png").resize((8, 8), Image.Resampling.LANCZOS)
        expected = encoder.encode_images(encoder.preprocess(fitted)[None])
        found = np.load(copy / Manifest.load(copy).image_vectors[0].name, allow_pickle=False)[:1].astype(np.float32)
        assert np.abs(found - expected.numpy()).max() < 1e-3

    def test_only_by_an_encoder_that_can(self, copy: Path) -> None:
        before = contents(copy)
        with pytest.raises(UserError, match="'hashing' has no images' half; leave --image out"):
            embed_by(copy, None, image=True)
        assert contents(copy) == before


def test_options(tmp_path: Path) -> None:
    for wrong in ({}, {"input_dir": tmp_path}, {"data": tmp_path, "output_dir": tmp_path}):
        with pytest.raises(UserError, match="either --input_dir and --output_dir, or --data"):
            EmbedOptions(**wrong)
    with pytest.raises(UserError, match="--image .* needs --data"):
        EmbedOptions(tmp_path, tmp_path, image=True)
    with pytest.raises(UserError, match="are for --input_dir"):
        EmbedOptions(data=tmp_path, where="split=train")
    with pytest.raises(UserError, match="no shard folder"):
        embed_by(tmp_path / "gone", None)


class TestProcesses:
    @pytest.mark.usefixtures("loaded_once")
    def test_shares_give_the_bytes_of_one(self, shard_folder: Path, copy: Path, weights, tmp_path, capsys) -> None:
        embed_by(copy, weights[0], image=True)
        expected = contents(copy)
        for count in (2, 3, 7):
            shared = shutil.copytree(shard_folder, tmp_path / f"of-{count}")
            before = contents(shared)
            for index in range(count - 1, -1, -1):
                assert Manifest.load(shared) == Manifest.load(shard_folder)
                assert {name: contents(shared)[name] for name in before} == before
                capsys.readouterr()
                embed_by(shared, weights[0], image=True, share=f"{index}/{count}")
            assert "embedded 24 samples" in capsys.readouterr().out
            assert contents(shared) == expected

    def test_units_that_are_there_are_not_made_again(self, copy: Path, weights: list[Path], monkeypatch) -> None:
        embed_by(copy, weights[0], share="0/2")
        made = []
        real = OpenClipEncoder.encode
        monkeypatch.setattr(OpenClipEncoder, "encode", lambda self, c, **k: made.append(len(c)) or real(self, c, **k))
        embed_by(copy, weights[0])
        assert made.count(7) == 1  # one shard of three, of seven distinct captions; else probes alone
        assert_embedded_by(copy, weights[0])

    @pytest.mark.dist
    def test_two_at_the_same_time(self, shard_folder: Path, copy: Path, tmp_path: Path) -> None:
        embed_by(copy, None)
        shared = shutil.copytree(shard_folder, tmp_path / "shared")
        launch_two("--data", str(shared), "--encoder", "hashing")
        assert contents(shared) == contents(copy)
        assert [path for path in shared.iterdir() if path.is_dir()] == []


def vectors_of(folder: Path) -> list[torch.Tensor]:
    shards = ShardSet(folder)
    return [shards.read(i).vectors for i in range(len(shards))]


@pytest.mark.usefixtures("loaded_once")
def test_a_kill_at_any_point_leaves_the_folder_as_before_or_as_after(
    shard_folder: Path, copy: Path, weights: list[Path], tmp_path: Path
) -> None:
    embed_by(copy, weights[0])
    before, after = vectors_of(copy), None
    whole = shutil.copytree(copy, tmp_path / "whole")
    embed_by(whole, weights[1], image=True)
    after, expected = vectors_of(whole), contents(whole)
    seen, last = set(), 0
    while "alive" not in seen:
        shared = shutil.copytree(copy, tmp_path / f"killed-{last}")
        with pytest.MonkeyPatch.context() as patch:
            Mortal(patch, last)
            try:
                embed_by(shared, weights[1], image=True)
                seen.add("alive")
            except Killed:
                pass
        found = vectors_of(shared)
        state = "before" if found[0].equal(before[0]) else "after"
        seen.add(state)
        assert all(map(torch.equal, found, before if state == "before" else after))
        embed_by(shared, weights[1], image=True)
        assert contents(shared) == expected
        assert [path for path in shared.iterdir() if path.is_dir()] == []
        last += 1
    assert seen == {"alive", "before", "after"} and last > 20


def test_a_manifest_that_changed_meanwhile_is_not_overwritten(copy: Path, weights, monkeypatch) -> None:
    real = sidecar_rows.write_texts
    fields = json.loads((copy / MANIFEST_NAME).read_text()) | {"built_with": {"by": "another"}}

    def write_and_change(*arguments) -> None:
        real(*arguments)
        (copy / MANIFEST_NAME).write_text(json.dumps(fields))

    monkeypatch.setattr("shards.embedding.shard_folder.write_texts", write_and_change)
    with pytest.raises(UserError, match="changed by another command meanwhile; run again"):
        embed_by(copy, weights[0])
    assert Manifest.load(copy).built_with == {"by": "another"} and ShardSet(copy).read(0).vectors.shape[1] == 768

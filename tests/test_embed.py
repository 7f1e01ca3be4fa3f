"""Embeddings on disk: written once per caption, read back only if they are what they claim."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from shards import create, embed
from shards.create import CreateOptions
from shards.embed import EmbedOptions
from shards.embedding.caption_encoder import CaptionEncoder
from shards.embedding_folder import read_embedding
from tests.tiny_clip import save_weights
from tests.tiny_text import CAPTIONS, build, encoder_of
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError

UNIT = np.eye(768, dtype=np.float32)[3]


class Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class TestReadEmbedding:
    @pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
    @pytest.mark.parametrize("shape", [(768,), (1, 768)])
    def test_one_caption(self, tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
        np.save(tmp_path / "a.npy", (3 * UNIT).astype(kind).reshape(shape))
        found = read_embedding(tmp_path / "a.npy", 1, 768)
        assert found.dtype == np.float32 and (found == UNIT[None]).all()

    def test_several_captions_in_fortran_order(self, tmp_path: Path) -> None:
        vectors = np.random.default_rng(0).normal(size=(3, 768))
        np.save(tmp_path / "a.npy", np.asfortranarray(vectors))
        expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.abs(read_embedding(tmp_path / "a.npy", 3, 768) - expected).max() < 1e-6

    @pytest.mark.parametrize(
        "array, reason",
        [
            (np.ones(512, "f4"), r"shape \[512\], expected \[768\] or \[1, 768\]"),
            (np.ones(1024, "f4"), r"shape \[1024\]"),
            (np.ones((2, 768), "f4"), r"shape \[2, 768\]"),
            (np.ones((1, 1, 768), "f4"), r"shape \[1, 1, 768\]"),
            (np.ones((768, 1), "f4"), r"shape \[768, 1\]"),
            (np.float32(1), r"shape \[\]"),
            (np.where(UNIT > 0, np.nan, UNIT), "NaN or infinity"),
            (np.where(UNIT > 0, np.inf, UNIT), "NaN or infinity"),
            (UNIT.astype("f8") * 1e300, "NaN or infinity"),
            (np.zeros(768, "f4"), "zero vector"),
            (np.ones(768, "i8"), "int64 values, expected floating point"),
            (np.ones(768, "c8"), "complex64 values"),
            (np.full(768, "1"), "<U1 values"),
        ],
    )
    def test_refused_with_expected_and_found(self, tmp_path: Path, array: np.ndarray, reason: str) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(UserError, match=f"wrong embedding: .*{reason}"):
            read_embedding(tmp_path / "a.npy", 1, 768)

    def test_one_vector_for_two_captions(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", UNIT)
        with pytest.raises(UserError, match=r"shape \[768\], expected \[2, 768\]"):
            read_embedding(tmp_path / "a.npy", 2, 768)

    def test_pickles_never_run(self, tmp_path: Path) -> None:
        path, canary = tmp_path / "a.npy", tmp_path / "canary"
        np.save(path, np.array([Canary(canary)], dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match="Object arrays cannot be loaded"):
            read_embedding(path, 1, 768)
        path.write_bytes(pickle.dumps(Canary(canary)))
        with pytest.raises(UserError, match="no readable .npy"):
            read_embedding(path, 1, 768)
        assert not canary.exists()

    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(30)])
    def test_no_npy(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(UserError, match="no readable .npy"):
            read_embedding(tmp_path / "a.npy", 1, 768)

    def test_truncated_and_missing(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", UNIT)
        data = (tmp_path / "a.npy").read_bytes()
        for end in range(0, len(data), 97):
            (tmp_path / "a.npy").write_bytes(data[:end])
            with pytest.raises(UserError, match="no readable .npy"):
                read_embedding(tmp_path / "a.npy", 1, 768)
        with pytest.raises(UserError, match="missing embedding"):
            read_embedding(tmp_path / "b.npy", 1, 768)

    def test_header_that_claims_a_terabyte(self, tmp_path: Path) -> None:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (300000000000,), }"
        header += b" " * (117 - len(header)) + b"\n"
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(UserError, match="wrong embedding"):
            read_embedding(tmp_path / "a.npy", 1, 768)


class Counting(HashingEncoder):
    seen = 0

    def encode(self, captions: list[str]) -> torch.Tensor:
        self.seen += len(captions)
        return super().encode(captions)


def test_equal_captions_are_encoded_once() -> None:
    encoder = CaptionEncoder(Counting())
    found = encoder.encode(["bb", "a", "bb", "c", "a"])
    assert encoder.encoder.seen == 3
    assert (found == HashingEncoder().encode(["bb", "a", "bb", "c", "a"]).numpy()).all()


def test_a_vector_depends_on_the_set_of_captions_alone() -> None:
    """Not on their order, nor on what the process has encoded before: so any process gives the same bytes."""
    encoder = CaptionEncoder(encoder_of(build()))
    expected = CaptionEncoder(encoder_of(build())).encode(CAPTIONS)
    for number in range(len(CAPTIONS)):
        encoder.encode(CAPTIONS[number:])
        turned = CAPTIONS[number:] + CAPTIONS[:number]
        assert (encoder.encode(turned) == np.roll(expected, -number, axis=0)).all()


class TestCommand:
    def test_writes_unit_vectors_and_identity(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        embed.main(EmbedOptions(caption_folder, tmp_path / "out", encoder="hashing", batch=5))
        one, two = np.load(tmp_path / "out/disc05.npy"), np.load(tmp_path / "out/more/disc00.npy")
        assert one.shape == (768,) and two.shape == (2, 768) and one.dtype == two.dtype == np.float32
        assert (one == HashingEncoder().encode(["a teal disc"])[0].numpy()).all()
        assert np.abs(np.linalg.norm(two, axis=1) - 1).max() < 1e-6
        assert json.loads((tmp_path / "out/encoder.json").read_text())["name"] == "hashing"
        line = capsys.readouterr().out
        assert line.startswith("embedded 12 of 12 samples with hashing") and "768-d, 0 captions truncated" in line
        assert not [path for path in (tmp_path / "out").rglob(".*")]

    def test_again_embeds_only_what_is_missing_or_edited(self, caption_folder: Path, tmp_path: Path, capsys) -> None:
        options = EmbedOptions(caption_folder, tmp_path / "out", encoder="hashing")
        embed.main(options)
        (tmp_path / "out/disc05.npy").unlink()
        (caption_folder / "disc02.txt").write_text("edited")
        with (tmp_path / "out/embedded.jsonl").open("a") as record:
            record.write('{"key": "disc04", "capt')  # what a killed run leaves
        capsys.readouterr()
        embed.main(options)
        assert capsys.readouterr().out.startswith("embedded 2 of 12")
        assert (np.load(tmp_path / "out/disc02.npy") == HashingEncoder().encode(["edited"])[0].numpy()).all()
        embed.main(options)
        assert capsys.readouterr().out.startswith("embedded 0 of 12")

    def test_encoders_do_not_mix(self, caption_folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        np.save(out / "x.npy", UNIT)
        with pytest.raises(UserError, match=r"holds .npy files but no encoder.json"):
            embed.main(EmbedOptions(caption_folder, out, encoder="hashing"))
        (out / "x.npy").unlink()
        embed.main(EmbedOptions(caption_folder, out, encoder="hashing"))
        identity = json.loads((out / "encoder.json").read_text())
        (out / "encoder.json").write_text(json.dumps(identity | {"name": "ViT-L-14/openai"}))
        with pytest.raises(UserError, match=r"another encoder: ViT-L-14/openai \(768-d\) against hashing"):
            embed.main(EmbedOptions(caption_folder, out, encoder="hashing"))
        (out / "encoder.json").write_text("{")
        with pytest.raises(UserError, match="encoder.json is damaged"):
            embed.main(EmbedOptions(caption_folder, out, encoder="hashing"))

    def test_options(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--batch is 0"):
            EmbedOptions(tmp_path, tmp_path, batch=0)
        with pytest.raises(UserError, match="--encoder stands for"):
            EmbedOptions(tmp_path, tmp_path, model="ViT-B-32", encoder="hashing")

    def test_output_in_the_way(self, caption_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write to"):
            embed.main(EmbedOptions(caption_folder, tmp_path / "file", encoder="hashing"))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of different weights."""
    return save_weights(tmp_path_factory.mktemp("clip"))


class TestOpenClip:
    def test_embed_then_create(self, caption_folder: Path, tiny_clip: list[Path], tmp_path: Path, capsys) -> None:
        (caption_folder / "disc05.txt").write_text("a teal disc " * 100)
        options = {"encoder": "tiny-test/local", "encoder_weights": tiny_clip[0], "device": "cpu"}
        embed.main(EmbedOptions(caption_folder, tmp_path / "vectors", **options))
        assert "32-d, 1 captions truncated" in capsys.readouterr().out
        create.main(CreateOptions(caption_folder, tmp_path / "a", 8, embeddings=tmp_path / "vectors"))
        create.main(CreateOptions(caption_folder, tmp_path / "b", 8, **options))
        a, b = ShardSet(tmp_path / "a"), ShardSet(tmp_path / "b")
        assert a.manifest.encoder == b.manifest.encoder
        assert len(a) == len(b) == 12
        for i in range(12):
            assert a.read(i).captions == b.read(i).captions
            assert (a.read(i).vectors - b.read(i).vectors).abs().max() < 1e-3

    def test_other_weights_of_the_same_name(self, caption_folder: Path, tiny_clip: list[Path], tmp_path: Path) -> None:
        first, second = (
            EmbedOptions(caption_folder, tmp_path / "out", encoder="tiny-test/local", encoder_weights=path)
            for path in tiny_clip
        )
        embed.main(first)
        with pytest.raises(UserError, match=r"same name tiny-test/local, other weights: cosine -?0\.\d+"):
            embed.main(second)

    def test_unknown_names(self, caption_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="unknown CLIP architecture 'ViT-L-41'; did you mean 'ViT-L-1"):
            embed.main(EmbedOptions(caption_folder, tmp_path / "out", encoder="ViT-L-41/openai"))
        with pytest.raises(UserError, match="no such file"):
            embed.main(EmbedOptions(caption_folder, tmp_path / "out", encoder_weights=tmp_path / "gone.pt"))
        assert not (tmp_path / "out").exists()

"""Stored embeddings get into shards only with a known origin, and only if they are what they claim."""

from pathlib import Path

import numpy as np
import pytest

from shards.embedding_folder import IDENTITY_NAME, identity_json, load_identity
from tests.conftest import COLOURS
from tests.test_create import build, skipped
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError


class TestEmbeddings:
    def folder(self, caption_folder: Path, tmp_path: Path) -> Path:
        """Vectors from elsewhere: no encoder.json, several spoilt."""
        folder = tmp_path / "vectors"
        for path in caption_folder.rglob("*.txt"):
            target = folder / path.relative_to(caption_folder).with_suffix(".npy")
            target.parent.mkdir(parents=True, exist_ok=True)
            vectors = HashingEncoder().encode(path.read_text().splitlines()).numpy()
            np.save(target, vectors.astype(np.float64) * 7 if len(vectors) == 1 else vectors)
        return folder

    def test_declared_encoder(self, caption_folder: Path, tmp_path: Path) -> None:
        folder = self.folder(caption_folder, tmp_path)
        np.save(folder / "disc01.npy", np.ones(512, "f4"))
        np.save(folder / "disc02.npy", np.full(768, np.nan, "f4"))
        np.save(folder / "disc04.npy", np.array([{}], dtype=object), allow_pickle=True)
        (folder / "disc05.npy").unlink()
        np.save(folder / "stray.npy", np.ones(768, "f4"))
        shards = build(caption_folder, tmp_path / "out", embeddings=folder, encoder="hashing")
        reasons = skipped(tmp_path / "out")
        assert len(shards) == 8 and len(reasons) == 5
        assert reasons["disc01.npy"].endswith("shape [512], expected [2, 768]")
        assert "NaN" in reasons["disc02.npy"] and "Object arrays" in reasons["disc04.npy"]
        assert reasons["disc05.npy"] == "missing embedding" and reasons["stray.npy"] == "embedding without image"
        identity = shards.manifest.encoder
        assert identity.name == "hashing" and set(identity.probe_captions) < {f"a {c} disc" for c in COLOURS}
        assert len(identity.probe_captions) == 4 and identity.cosine(HashingEncoder()) > 0.999
        for i in range(len(shards)):
            expected = HashingEncoder().encode(list(shards.read(i).captions))
            assert (shards.read(i).vectors - expected).abs().max() < 1e-3

    def test_origin_must_be_known(self, caption_folder: Path, tmp_path: Path) -> None:
        folder = self.folder(caption_folder, tmp_path)
        with pytest.raises(UserError, match="does not say which encoder made it"):
            build(caption_folder, tmp_path / "out", embeddings=folder)
        built = build(caption_folder, tmp_path / "declared", embeddings=folder, encoder="hashing")
        (folder / IDENTITY_NAME).write_bytes(identity_json(built.manifest.encoder))
        assert load_identity(folder) == built.manifest.encoder
        with pytest.raises(UserError, match="was embedded by hashing, not by --encoder ViT-L-14/openai"):
            build(caption_folder, tmp_path / "out", embeddings=folder, encoder="ViT-L-14/openai")
        assert len(build(caption_folder, tmp_path / "out", embeddings=folder)) == 12
        with pytest.raises(UserError, match="no folder of embeddings"):
            build(caption_folder, tmp_path / "other", embeddings=tmp_path / "gone")

    @pytest.mark.parametrize(
        "name, message",
        [
            ("ViT-L-14/laion2b_s32b_b28k", "tag of ViT-L-14 'laion2b_s32b_b28k'; did you mean 'laion2b_s32b_b82k'"),
            ("ViT-L-41/openai", "unknown CLIP architecture 'ViT-L-41'; did you mean 'ViT-L-1"),
            ("hashing2", "unknown CLIP architecture 'hashing2'"),
        ],
    )
    def test_declared_name_must_exist(self, caption_folder: Path, tmp_path: Path, name: str, message: str) -> None:
        folder = self.folder(caption_folder, tmp_path)
        with pytest.raises(UserError, match=message):
            build(caption_folder, tmp_path / "out", embeddings=folder, encoder=name)
        assert not (tmp_path / "out").exists()

    def test_declared_name_of_local_weights(self, caption_folder: Path, tmp_path: Path) -> None:
        folder = self.folder(caption_folder, tmp_path)
        (tmp_path / "mine.pt").touch()
        options = {"embeddings": folder, "encoder": "ViT-L-14/mine", "encoder_weights": tmp_path / "mine.pt"}
        assert build(caption_folder, tmp_path / "out", **options).manifest.encoder.name == "ViT-L-14/mine"

    def test_folder_without_vectors(self, caption_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "vectors").mkdir()
        with pytest.raises(UserError, match=r"no usable embedding KEY.npy, the first expected is disc01.npy"):
            build(caption_folder, tmp_path / "out", embeddings=tmp_path / "vectors", encoder="hashing")

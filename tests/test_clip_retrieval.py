"""Embeddings that clip-retrieval has made are matched to the samples of tars by key and caption."""

import numpy as np
import pytest

from shards import adopt
from shards.adopt import AdoptOptions
from tests import foreign
from tests.test_adopt import skipped
from toolkit.data.shard_reader import ShardSet
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.errors import UserError

pytest.importorskip("pyarrow")
KEYS = ("b", "a", "d", "c")
CAPTIONS = ("a plate", "ćevapi", "a  cup\n", "burek")


def vectors(captions: tuple[str, ...] = CAPTIONS, scale: float = 1.0) -> np.ndarray:
    return HashingEncoder().encode([" ".join(c.split()) for c in captions]).numpy() * scale


@pytest.fixture
def folder(tmp_path):
    """One tar of four samples."""
    (tmp_path / "set").mkdir()
    samples = {key: foreign.sample(i, caption) for i, (key, caption) in enumerate(zip(KEYS, CAPTIONS, strict=True))}
    foreign.write_tar(tmp_path / "set" / "00000.tar", samples)
    return tmp_path / "set"


def run(folder, embeddings, encoder="hashing", **options) -> ShardSet:
    adopt.main(AdoptOptions(folder, 16, encoder=encoder, embeddings=embeddings, **options))
    return ShardSet(folder)


@pytest.mark.parametrize(
    ("nested", "key", "kind"), ((True, "image_path", "<f4"), (False, "image_path", "<f2"), (True, "key", "<f4"))
)
def test_rows_are_matched_by_key_in_whatever_order_and_file(folder, tmp_path, nested, key, kind):
    found = vectors(scale=7.5).astype(kind)
    files = [(["c", "a"], ["burek", "ćevapi"], found[[3, 1]]), (["d", "b"], ["a  cup\n", "a plate"], found[[2, 0]])]
    foreign.clip_retrieval_folder(tmp_path / "emb", files, nested, key)
    shards = run(folder, tmp_path / "emb")
    assert [shards.read(i).captions[0] for i in range(4)] == ["a plate", "ćevapi", "a cup", "burek"]
    read = np.stack([shards.read(i).vectors[0].numpy() for i in range(4)])
    np.testing.assert_allclose(read, vectors(), atol=1e-3)
    stored = np.load(folder / "00000.text.npy", allow_pickle=False).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-3)
    identity = shards.manifest.encoder
    assert identity.name == "hashing" and identity.cosine(HashingEncoder()) > 0.999
    assert set(identity.probe_captions) == {"a plate", "ćevapi", "a cup", "burek"}


def test_what_does_not_fit_is_left_out_by_name(folder, tmp_path):
    samples = {key: foreign.sample(1, f"caption of {key}") for key in ("nan", "zero", "ok")}
    foreign.write_tar(folder / "00001.tar", samples)
    found = vectors(tuple(f"caption of {key}" for key in samples))
    found[0, 5], found[1] = np.nan, 0
    files = [
        (["a", "b", "c"], ["ćevapi", "another caption", "burek"], vectors(CAPTIONS[:3])),
        (list(samples), [f"caption of {key}" for key in samples], found),
    ]
    foreign.clip_retrieval_folder(tmp_path / "emb", files)
    shards = run(folder, tmp_path / "emb")
    assert {path: reason for path, reason in skipped(folder).items()} == {
        "00000.tar/b": "stale embedding: made of another caption",
        "00000.tar/d": "missing embedding",
        "00001.tar/nan": "wrong embedding: NaN or infinity, expected finite numbers",
        "00001.tar/zero": "wrong embedding: a zero vector, expected a direction",
    }
    assert [shards.read(i).captions[0] for i in range(len(shards))] == ["ćevapi", "burek", "caption of ok"]


def test_one_key_in_two_tars_is_told_apart_by_the_caption(folder, tmp_path):
    foreign.write_tar(folder / "00001.tar", {"a": foreign.sample(1, "another a")})
    keys, captions = [*KEYS, "a"], [*CAPTIONS, "another a"]
    foreign.clip_retrieval_folder(tmp_path / "emb", [(keys, captions, vectors(tuple(captions)))])
    shards = run(folder, tmp_path / "emb")
    for i, caption in ((1, "ćevapi"), (4, "another a")):
        expected = HashingEncoder().encode([caption])[0].numpy()
        assert shards.read(i).captions == (caption,)
        np.testing.assert_allclose(shards.read(i).vectors[0].numpy(), expected, atol=1e-3)


def break_rows(emb):
    np.save(emb / "text_emb" / "text_emb_00.npy", vectors()[:3])


def break_width(emb):
    foreign.clip_retrieval_folder(emb, [(list(KEYS), list(CAPTIONS), v) for v in (vectors(), vectors()[:, :100])])


def break_kind(emb):
    np.save(emb / "text_emb" / "text_emb_00.npy", np.ones((4, 8), dtype=np.int64))


def break_objects(emb):
    np.save(emb / "text_emb" / "text_emb_00.npy", np.array([[{}] * 8] * 4), allow_pickle=True)


def break_npy(emb):
    (emb / "text_emb" / "text_emb_00.npy").write_bytes(b"no array")


def break_parquet(emb):
    (emb / "metadata" / "metadata_00.parquet").write_bytes(b"no table")


def break_pairs(emb):
    (emb / "metadata" / "metadata_00.parquet").unlink()


def break_columns(emb):
    foreign.clip_retrieval_folder(emb, [(list(KEYS), list(CAPTIONS), vectors())], key="url_of")


def break_all(emb):
    (emb / "text_emb" / "text_emb_00.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    (
        (break_rows, r"metadata_00\.parquet has 4 rows, text_emb_00\.npy 3"),
        (break_width, "vectors of 768 and of 100 numbers"),
        (break_kind, r"int64 \[4, 8\], expected floating point"),
        (break_objects, "no readable .npy"),
        (break_npy, "no readable .npy"),
        (break_parquet, "cannot be read as Parquet"),
        (break_pairs, "no metadata file of its number"),
        (break_columns, "needed are image_path or key, and caption"),
        (break_all, "holds no text_emb_0.npy"),
    ),
)
def test_files_that_do_not_fit_are_refused_before_anything_is_written(folder, tmp_path, damage, message):
    foreign.clip_retrieval_folder(tmp_path / "emb", [(list(KEYS), list(CAPTIONS), vectors())])
    damage(tmp_path / "emb")
    with pytest.raises(UserError, match=message) as caught:
        run(folder, tmp_path / "emb")
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["00000.tar"]


@pytest.mark.parametrize(("encoder", "message"), (("", "name it with --encoder"), ("ViT-Q-99/none", "architecture")))
def test_the_encoder_must_be_named_and_known(folder, tmp_path, encoder, message):
    foreign.clip_retrieval_folder(tmp_path / "emb", [(list(KEYS), list(CAPTIONS), vectors())])
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "emb", encoder)

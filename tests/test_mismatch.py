"""--mismatch_cosine: which captions of other images count as mismatched, with vectors made for it."""

import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.builds import build
from tests.running import lone_trainer
from toolkit import draws
from toolkit.command_line import parse
from toolkit.config import TrainConfig
from toolkit.data.dataset import MISMATCH_TRIES, ShardDataset, batches
from toolkit.data.resident import ResidentSet
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

POSITIONS = 600


def unit(angle: float, plane: int = 0) -> list[float]:
    """A vector of 8 numbers in one of four planes; two of a plane have the cosine of their angles' difference."""
    vector = [0.0] * 8
    vector[2 * plane : 2 * plane + 2] = math.cos(angle), math.sin(angle)
    return vector


NEAR = math.acos(0.9)
CAPTIONS = {
    "0": {"couch": unit(0)},
    "1": {"sofa": unit(NEAR)},  # 0.9 to couch
    "2": {"soup": unit(0, 1), "a bowl": unit(0, 2)},  # two captions, as unlike as can be
    "3": {"stew": unit(NEAR, 1)},  # 0.9 to soup, 0 to a bowl
    "4": {"a dish": unit(math.acos(0.85), 2), "broth": unit(math.acos(0.5), 1)},  # 0.85 to a bowl, 0.5 to soup
}


def folder_of(place: Path, captions: dict[str, dict[str, list[float]]]) -> ShardSet:
    images, vectors = place / "in", place / "vectors"
    images.mkdir()
    vectors.mkdir()
    for name, texts in captions.items():
        Image.new("RGB", (16, 16)).save(images / f"{name}.png")
        (images / f"{name}.txt").write_text("\n".join(texts) + "\n")
        np.save(vectors / f"{name}.npy", np.array(list(texts.values()), dtype=np.float32))
    return build(images, place / "out", embeddings=vectors, encoder="hashing")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return folder_of(tmp_path_factory.mktemp("mismatch"), CAPTIONS)


def drawn(shards: ShardSet, cosine: float) -> set[tuple[str, str]]:
    """(image, mismatched caption) as they come in POSITIONS visits; '-' where none was found."""
    dataset, found = ShardDataset(shards, seed=0, mismatch_cosine=cosine), set()
    for position in range(POSITIONS):
        number = dataset.sample_at(position)
        visit = dataset.visit(position, shards.read, shards.read_texts)
        found.add((str(number), visit.other.captions[visit.other_caption] if visit.other else "-"))
    return found


def expected(cosine: float) -> set[tuple[str, str]]:
    """All pairs that the rule allows, from the vectors."""
    pairs = set()
    for (own, mine), (_, theirs) in itertools.permutations(CAPTIONS.items(), 2):
        for caption, vector in theirs.items():
            if all(np.dot(vector, own_vector) < cosine for own_vector in mine.values()):
                pairs.add((own, caption))
    return pairs


@pytest.mark.parametrize("cosine", [0.3, 0.7, 0.8, 0.88, 0.95, 0.999, 1.0])
def test_exactly_what_lies_below_it_to_all_captions_is_drawn(shards, cosine):
    assert drawn(shards, cosine) == expected(cosine)


def test_a_synonym_at_090_is_one_at_080_and_a_mismatch_at_0999(shards):
    pairs = {("0", "sofa"), ("1", "couch"), ("3", "soup")}
    assert not pairs & drawn(shards, 0.8) and pairs <= drawn(shards, 0.999)
    assert ("2", "stew") not in drawn(shards, 0.8)  # though it is far from the image's other caption
    assert ("2", "a dish") not in drawn(shards, 0.8) and ("2", "a dish") in drawn(shards, 0.88)
    assert ("0", "soup") in drawn(shards, 0.8)


@pytest.mark.parametrize("cosine", [0.8, 0.999, 1.0])
def test_captions_of_one_image_are_never_a_mismatch(shards, cosine):
    own = {(name, caption) for name, texts in CAPTIONS.items() for caption in texts}
    assert not own & drawn(shards, cosine)


def test_none_found_is_marked(tmp_path):
    """Three near-synonyms and a stranger: at 0.8 the first three have one caption left, without it none."""
    three = {str(i): {f"dish {i}": unit(i * NEAR / 2)} for i in range(3)}
    shards = folder_of(tmp_path, three)
    for cosine, differs in ((0.8, 0.0), (0.92, None), (0.999, 1.0)):
        items = [ShardDataset(shards, seed=0, mismatch_cosine=cosine)[position] for position in range(30)]
        found = {item.differs for item in items}
        assert found == ({0.0, 1.0} if differs is None else {differs})  # 0.9 between the outer two alone
        assert all(torch.equal(item.mismatched, item.text) == (item.differs == 0) for item in items)


def test_by_default_it_is_as_ever(shard_folder):
    """The rule with 0.999 written out, on its own draws."""
    shards = ShardSet(shard_folder)
    dataset = ShardDataset(shards, seed=3)
    for position in range(100):
        own = shards.read(dataset.sample_at(position))
        for attempt in range(MISMATCH_TRIES):
            where = (3, "mismatch", position, attempt)
            other = shards.read(draws.integer(len(shards), *where))
            k = draws.integer(len(other.captions), *where, 1)
            if other.captions[k] not in own.captions and (own.vectors @ other.vectors[k]).max() < 0.999:
                break
        item = dataset[position]
        assert item.differs == 1 and torch.equal(item.mismatched, other.vectors[k])


def test_workers_pickles_and_a_resident_set_keep_it(shards):
    dataset = ShardDataset(shards, seed=0, mismatch_cosine=0.8)
    again = pickle.loads(pickle.dumps(dataset))
    assert (again.seed, again.mismatch, again.mismatch_cosine) == (0, True, 0.8)
    assert [again.sample_at(position) for position in range(20)] == [dataset.sample_at(p) for p in range(20)]
    held = ResidentSet(shards, torch.device("cpu"), 0, shown=False).batches(dataset, 0, 8, slice(0, 8), 1)
    streams = [batches(dataset, 0, 8, slice(0, 8), 1, workers) for workers in (0, 2)] + [held]
    plain = batches(ShardDataset(shards, seed=0), 0, 8, slice(0, 8), 1, 0)
    found = [[next(stream)[0] for _ in range(8)] for stream in [*streams, plain]]
    for stream in [*streams, plain]:
        stream.close()
    whole = [torch.cat([batch.mismatched for batch in each]) for each in found]
    assert torch.equal(whole[0], whole[1]) and torch.equal(whole[0], whole[2]) and not torch.equal(whole[0], whole[3])


def test_training_passes_it_on(shard_folder):
    assert lone_trainer(shard_folder).feed.dataset.mismatch_cosine == 0.999
    assert lone_trainer(shard_folder, mismatch_cosine=0.4).feed.dataset.mismatch_cosine == 0.4


@pytest.mark.parametrize("value", ["0", "-0.1", "1.001", ".nan"])
def test_out_of_range_is_one_line(value):
    with pytest.raises(UserError, match="mismatch_cosine is .*above 0 and at most 1") as refused:
        parse(TrainConfig, ["--mismatch_cosine", value])
    assert "\n" not in str(refused.value)
    assert parse(TrainConfig, ["--mismatch_cosine", "1"]).mismatch_cosine == 1

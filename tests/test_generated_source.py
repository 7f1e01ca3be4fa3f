"""Images of a checkpoint or of a network in memory: sample i is a function of (seed, i), bit for bit."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.sources import generated, opening
from evaluation.sources.opening import open_source
from evaluation.sources.source import GROUP
from tests.conftest import REPOSITORY
from tests.forking import Forked
from tests.scored import Sensitive, images_of, load_sensitive, untrained, write_run, write_shards
from toolkit.draws import sample_noise
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.inference import sampling

SIZES = {"resolution": 32, "base_ch": 8}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), **SIZES)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """More than a group, and not whole groups."""
    return write_shards(tmp_path_factory.mktemp("prompts") / "s", 37)


@pytest.fixture
def sensitive(monkeypatch) -> None:
    monkeypatch.setattr(opening, "load_generator", load_sensitive)


@pytest.fixture(scope="module")
def drawn(run_folder, prompts) -> Tensor:
    """The first 100 images."""
    return images_of(open_source(run_folder, count=100, prompts=prompts), batch=GROUP)


def test_the_sensitive_network_notices_a_batch():
    network = Sensitive(untrained(**SIZES).eval())
    z, text = sample_noise(list(range(GROUP)), 8), torch.eye(768)[:GROUP]
    together, alone = (sampling.sample(network, z, text, batch) for batch in (GROUP, 1))
    assert (together != alone).float().mean() > 0.5


@pytest.mark.parametrize("count", [5, 20, 40, 100])
def test_neither_batch_nor_count_changes_a_bit(run_folder, prompts, sensitive, count):
    expected = images_of(open_source(run_folder, count=100, prompts=prompts), batch=GROUP)[:count]
    for batch in (1, 3, 8, 32, 100):
        assert torch.equal(images_of(open_source(run_folder, count=count, prompts=prompts), batch), expected)


@pytest.mark.parametrize(("processes", "batch"), [(2, 3), (2, 32), (5, 8)])
def test_batches_in_turn_of_several_processes(run_folder, prompts, drawn, processes, batch):
    source = open_source(run_folder, count=100, prompts=prompts)
    ranges = [range(first, min(first + batch, 100)) for first in range(0, 100, batch)]
    found = [list(source.stream(ranges[index::processes])) for index in range(processes)]
    joined = torch.cat([found[i % processes][i // processes] for i in range(len(ranges))])
    assert torch.equal(joined, drawn)
    assert torch.equal(source.draw(range(90, 10, -7)), drawn[list(range(90, 10, -7))])


@pytest.mark.dist
def test_two_processes_draw_the_same_bits(run_folder, prompts, drawn, tmp_path):
    code = (
        "import sys, numpy, torch\nfrom evaluation.sources.opening import open_source\n"
        "run, prompts, index, out = sys.argv[1:]\n"
        "source = open_source(run, count=100, prompts=prompts)\n"
        "ranges = [range(first, min(first + 7, 100)) for first in range(0, 100, 7)][int(index) :: 2]\n"
        "numpy.save(out, torch.cat(list(source.stream(ranges))).numpy())"
    )
    script, files = tmp_path / "draw.py", [tmp_path / f"{index}.npy" for index in range(2)]
    script.write_text(code)
    processes = [
        Forked([str(part) for part in (script, run_folder, prompts, i, file)], REPOSITORY, dict(os.environ))
        for i, file in enumerate(files)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    for index, file in enumerate(files):
        numbers = [i for i in range(100) if i // 7 % 2 == index]
        assert np.array_equal(np.load(file), drawn[numbers].numpy())


def test_odd_batches_draw_no_group_twice(run_folder, prompts, monkeypatch):
    sizes, real = [], generated.sample
    monkeypatch.setattr(generated, "sample", lambda n, z, *rest: sizes.append(len(z)) or real(n, z, *rest))
    images_of(open_source(run_folder, count=40, prompts=prompts), batch=3)
    assert sizes == [GROUP] * 3


def test_seeds_captions_and_sizes(run_folder, prompts, drawn):
    source = open_source(run_folder, count=100, prompts=prompts)
    assert source.captions[:37] == source.captions[37:74] and len(source.captions) == 100
    assert set(source.captions) == {f"dish {i}" for i in range(37)}
    other = images_of(open_source(run_folder, count=100, prompts=prompts, seed=1))
    ours, theirs = (set(map(bytes, images.flatten(1).numpy())) for images in (drawn, other))
    assert len(ours) == 100 and not ours & theirs
    small = open_source(run_folder, count=2, prompts=prompts, size=8)
    assert images_of(small).shape == (2, 3, 8, 8) and (small.width, small.height) == (8, 8)
    assert open_source(run_folder, prompts=prompts).count == 37
    assert source.fingerprint() is None and source.identity is not None


def test_truncation_draws_the_same_images_nearer_to_their_prompt(run_folder, prompts, drawn):
    assert torch.equal(images_of(open_source(run_folder, count=100, prompts=prompts, truncation=1.0)), drawn)
    found = {psi: images_of(open_source(run_folder, count=100, prompts=prompts, truncation=psi)) for psi in (0, 0.5)}
    assert torch.equal(found[0][:37], found[0][37:74])  # the second round through the prompts, with other noise
    assert not torch.equal(drawn[:37], drawn[37:74])
    apart = [(found[psi].float() - found[0].float()).abs().mean() for psi in (0.5,)]
    assert 0 < apart[0] < (drawn.float() - found[0].float()).abs().mean()


def test_prompts_from_a_text_file_are_those_of_the_shards(tmp_path, run_folder):
    text = tmp_path / "prompts.txt"
    text.write_text("dish 0\n\ndish 1\r\ndish 2\ndish 3\n", encoding="utf-8")
    from_text = open_source(run_folder, prompts=text)
    from_shards = open_source(run_folder, prompts=write_shards(tmp_path / "s", 4))
    assert from_text.captions == from_shards.captions
    difference = images_of(from_text).int() - images_of(from_shards).int()
    assert difference.abs().max() <= 1  # shards hold float16 vectors


class Entangled(HashingEncoder):
    """Every vector depends on all captions of a call, as with padding to the longest."""

    def encode(self, captions: list[str]) -> Tensor:
        vectors = super().encode(captions)
        return torch.nn.functional.normalize(vectors + vectors.mean(dim=0), dim=1)


def test_prompts_of_a_text_file_give_the_same_bits_for_any_count(run_folder, tmp_path, sensitive, monkeypatch):
    monkeypatch.setattr("evaluation.sources.prompts.load_encoder_of", lambda *_: Entangled())
    text = tmp_path / "prompts.txt"
    text.write_text("".join(f"dish {i} with {'x' * i}\n" for i in range(37)), encoding="utf-8")
    long = images_of(open_source(run_folder, count=60, prompts=text))
    for count in (3, 20, 37):
        assert torch.equal(images_of(open_source(run_folder, count=count, prompts=text)), long[:count])


def test_prompts_of_another_encoder_are_refused(tmp_path, run_folder):
    other = EncoderIdentity.from_vectors("ViT-L-14/openai", ["a"], torch.ones(1, 768) / 768**0.5)
    with pytest.raises(UserError, match="another encoder"):
        open_source(run_folder, prompts=write_shards(tmp_path / "s", 2, other))
    with pytest.raises(UserError, match="--prompts"):
        open_source(run_folder)

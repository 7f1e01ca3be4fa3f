"""--mirror: real images flipped by (seed, position) alone; whatever else looks at the data sees them as they are."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.running import TENSORS, lone_trainer, train
from tests.test_trainer import weights
from toolkit import draws
from toolkit.data.dataset import Batch, ShardDataset
from toolkit.data.shard_reader import ShardSet
from toolkit.run_folder.best import BEST
from toolkit.run_folder.checkpoint import checkpoint_name

STEPS = 6


def shown(shard_folder: Path, steps: int = STEPS, first_row: int = 0, **options) -> dict[str, list[Tensor]]:
    """Per phase the real images of each micro-batch of some steps, from the process whose rows begin there."""
    one, found = lone_trainer(shard_folder, **options), {"D": [], "G": []}
    if first_row:  # the second of two processes
        one.share, one.parts = slice(first_row, 8), one.parts // 2
    inputs = one.inputs

    def remembering(batch: Batch, noise: draws.StepDraws, z: str, *rest, **named):
        found[z[-1]].append(batch.images.clone())
        return inputs(batch, noise, z, *rest, **named)

    one.inputs = remembering
    for _ in range(steps):
        one.step()
    one.close()
    return found


def drawn(count: int, seed: int = 0) -> Tensor:
    """bool [count]: whether the image at a position is flipped."""
    return torch.tensor([bool(draws.integer(2, seed, "mirror", position)) for position in range(count)])


def expected(shard_folder: Path, count: int) -> Tensor:
    """uint8 [count, 3, R, R]: by the definition, image by image."""
    dataset = ShardDataset(ShardSet(shard_folder), seed=0)
    images, backwards = [dataset[position].image for position in range(count)], torch.arange(15, -1, -1)
    return torch.stack([p[:, :, backwards] if f else p for p, f in zip(images, drawn(count), strict=True)])


def test_off_is_the_images_as_they_are(shard_folder):
    dataset = ShardDataset(ShardSet(shard_folder), seed=0)
    images = torch.cat(shown(shard_folder, mirror=False)["D"])
    assert torch.equal(images, torch.stack([dataset[position].image for position in range(8 * STEPS)]))


def test_on_is_the_same_images_flipped_where_drawn(shard_folder):
    plain, found = (torch.cat(shown(shard_folder, mirror=mirror)["D"]) for mirror in (False, True))
    flipped = drawn(8 * STEPS)
    assert 0.3 < flipped.float().mean() < 0.7
    assert torch.equal(found, expected(shard_folder, 8 * STEPS))
    assert torch.equal(found[~flipped], plain[~flipped]) and torch.equal(found[flipped], plain[flipped].flip(3))
    changed = (found != plain).flatten(1).any(dim=1)
    assert changed.sum() > 5 and not (changed & ~flipped).any()  # some discs are their own mirror image


def test_half_of_all_positions_are_flipped_whatever_the_seed():
    """Within 4 standard errors, and seeds agree on half of the positions."""
    one, other = drawn(4000), drawn(4000, seed=1)
    for share in (one, other, one == other):
        assert abs(share.float().mean().item() - 0.5) < 4 * 0.5 / 4000**0.5


def test_both_phases_see_the_same_images(shard_folder):
    """With two steps of D the phase of G goes on with the second one's, as it does without flips."""
    found = shown(shard_folder, mirror=True, d_steps=2, batch_gpu=4)
    assert torch.equal(torch.cat(found["D"]), expected(shard_folder, 16 * STEPS))
    last_of_d = [batch for step in range(STEPS) for batch in found["D"][4 * step + 2 : 4 * step + 4]]
    assert all(torch.equal(a, b) for a, b in zip(found["G"], last_of_d, strict=True))


@pytest.mark.parametrize("options", [{"batch_gpu": 2}, {"workers": 2}, {"resident": True}], ids=str)
def test_micro_batches_workers_and_a_resident_set_change_nothing(shard_folder, options):
    found = torch.cat(shown(shard_folder, mirror=True, **options)["D"])
    assert torch.equal(found, expected(shard_folder, 8 * STEPS))


def test_a_second_process_flips_its_rows_as_one_process_does(shard_folder):
    found = torch.cat(shown(shard_folder, first_row=4, mirror=True, batch_gpu=2)["D"])
    whole = expected(shard_folder, 8 * STEPS).view(STEPS, 8, 3, 16, 16)
    assert torch.equal(found.view(STEPS, 4, 3, 16, 16), whole[:, 4:])


@pytest.mark.dist
def test_two_processes_are_one_process_in_two_micro_batches(two, shard_folder, tmp_path):
    """Four images at once in both: the same sums, so the same bits."""
    train(shard_folder, tmp_path / "one", batch_gpu=4, iters=3, r1_interval=2, mirror=True)
    of_one, of_two = (run / checkpoint_name(3) for run in (tmp_path / "one", two.folder / "mirrored"))
    assert [name for name in TENSORS if (of_one / name).read_bytes() != (of_two / name).read_bytes()] == []


def test_resumed_it_goes_on_bitwise_and_it_is_another_training_than_without(shard_folder, tmp_path):
    train(shard_folder, tmp_path / "whole", iters=4, mirror=True)
    train(shard_folder, tmp_path / "parts", iters=2, mirror=True)
    train(shard_folder, tmp_path / "parts", iters=4, mirror=True)
    train(shard_folder, tmp_path / "plain", iters=4)
    whole, parts, plain = (tmp_path / name / checkpoint_name(4) for name in ("whole", "parts", "plain"))
    assert [name for name in TENSORS if (whole / name).read_bytes() != (parts / name).read_bytes()] == []
    assert [name for name in TENSORS if (whole / name).read_bytes() == (plain / name).read_bytes()] == []


def test_weights_do_not_move_by_the_option_where_every_image_is_its_own_mirror_image(shard_folder, monkeypatch):
    """Only the real images are flipped: the noise, the captions and the generated ones stay."""
    found = []
    for mirror in (False, True):
        one = lone_trainer(shard_folder, mirror=mirror)
        fetch = one.feed.take
        one.feed.take = lambda fetch=fetch: [
            [batch._replace(images=torch.maximum(batch.images, batch.images.flip(3))) for batch in parts]
            for parts in fetch()
        ]
        for _ in range(2):
            one.step()
        one.close()
        found.append((weights(one.G), weights(one.D)))
    for plain, mirrored in zip(*found, strict=True):
        assert all(torch.equal(plain[name], mirrored[name]) for name in plain)


def test_what_is_scored_and_drawn_keeps_the_images_as_they_are(shard_folder, tmp_path):
    """Networks that stand still: the same sample grid, and the same distance to the real images."""
    still = {"iters": 1, "lr_g": 1e-30, "lr_d": 1e-30, "score": "swd", "sample_every": 1}
    found = []
    for mirror in (False, True):
        run = tmp_path / str(mirror)
        train(shard_folder, run, mirror=mirror, **still)
        found.append(((run / "sample_0000001.png").read_bytes(), (run / BEST).read_bytes()))
    assert found[0] == found[1]

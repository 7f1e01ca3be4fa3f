"""The memory estimate against what a real CPU step saves, and the trial for --batch_gpu auto against a fake card."""

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tests.running import train
from tests.test_architecture import EVERYTHING as ARCHITECTURE
from toolkit.checks import micro_batch
from toolkit.checks.memory import estimate, explain_out_of_memory, is_out_of_memory, saved_bytes
from toolkit.checks.micro_batch import agreed, largest_micro_batch, largest_that_fits
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.dataset import Batch
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import StepDraws
from toolkit.errors import UserError
from toolkit.networks.models import Discriminator, Generator, count_parameters
from toolkit.training.trainer import Trainer, frozen

TINY = {"resolution": 16, "base_ch": 4, "z_dim": 8, "d_scales": 2, "batch": 8, "workers": 0, "match_captions": 5}
UNMATCHED = {"match_weight": 0.0, "g_match_weight": 0.0}
EVERYTHING = {
    "r2_penalty": 1.0, "lecam": 0.1, "feature_matching": 1.0, "loss": "relativistic", "g_norm": "group",
    "adaptive_augment": True, "diffaug": "color,translation,cutout,flip",
}  # fmt: skip


def trainer(shard_folder: Path, precision: str = "no", **options) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = ResolvedConfig(**{"data": str(shard_folder), **TINY, **options})
    return Trainer(config, Accelerator(cpu=True, mixed_precision=precision), ShardSet(shard_folder))


def random_batch(count: int, config: ResolvedConfig) -> Batch:
    images = torch.randint(0, 256, (count, 3, config.resolution, config.resolution), dtype=torch.uint8)
    text = nn.functional.normalize(torch.randn(count, config.cond_dim), dim=1)
    return Batch(images, text, text.flip(0), torch.ones(count), ("",) * count, torch.arange(count), slice(0, count))


def test_saved_bytes_counts_each_storage_once():
    """exp saves its result, x * y both factors, views share a storage: 3 storages of 10 float32."""
    x, y = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    assert saved_bytes(lambda: (x * y).sum()) == 80
    assert saved_bytes(lambda: (x * y).sum(), held=[y]) == 40
    assert saved_bytes(lambda: (x.view(2, 5) * x.view(2, 5)).sum()) == 40
    assert saved_bytes(lambda: ((x * y).exp() * x).sum()) == 120
    assert saved_bytes(lambda: (x.detach() * y.detach()).sum()) == 0


@pytest.mark.parametrize(
    ("precision", "options"),
    [(precision, options) for options in ({}, EVERYTHING, ARCHITECTURE) for precision in ("no", "bf16")],
)  # fmt: skip
def test_the_estimate_equals_what_a_real_step_saves(shard_folder, precision, options):
    """Counted on fake tensors at 4 and 8 images, compared at 12 with the Trainer's own losses on real ones.

    What is left (below 1 part in 2,000, of networks this small) are the terms' weights and the caption mask.
    """
    one = trainer(shard_folder, precision, **options)
    expected = estimate(one.config, 1, precision)
    batch, noise = random_batch(12, one.config), StepDraws(0, 12, 0, 0)
    networks = [phase.network for phase in one.phases.values()]
    held = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    found = saved_bytes(lambda: one.discriminator_loss(batch, noise), held)
    assert expected.d_phase[0] + 12 * expected.d_phase[1] == pytest.approx(found, rel=5e-4)
    with frozen(one.D):
        found = saved_bytes(lambda: one.generator_loss(batch, noise), held)
    assert expected.g_phase[0] + 12 * expected.g_phase[1] == pytest.approx(found, rel=5e-4)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_perceptual_loss_counts_vgg_and_its_activations():
    """VGG-16 up to relu4_3: 7,635,264 weights; at 16 px the five fp32 maps of its first two blocks alone are 262 kB."""
    without, with_it = (estimate(ResolvedConfig(**TINY, perceptual=weight), 1, "no") for weight in (0.0, 1.0))
    assert with_it.networks - without.networks == 4 * 7_635_264
    maps = 4 * (2 * 64 * 16 * 16 + 64 * 8 * 8 + 2 * 128 * 8 * 8)  # relu1_1, relu1_2, their pool, relu2_1, relu2_2
    assert maps < with_it.g_phase[1] - without.g_phase[1] < 3 * maps
    assert with_it.d_phase == without.d_phase


def test_what_does_not_depend_on_the_batch_is_counted_in_closed_form():
    config = ResolvedConfig(**TINY, batch_gpu=2)
    G, D = Generator(config), Discriminator(config)
    g, d = count_parameters(G), count_parameters(D)
    buffers = [sum(b.numel() * b.element_size() for b in network.buffers()) for network in (G, D)]
    one, two = estimate(config, 1, "no"), estimate(config, 2, "no")
    assert one.micro_batch == two.micro_batch == 2
    assert one.networks == 4 * (g + d) + sum(buffers) and one.average == 4 * g + buffers[0]
    assert estimate(dataclasses.replace(config, ema_profiles="5,20"), 1, "no").average == 3 * one.average
    assert one.moments == 8 * (g + d)
    assert (one.gradients, two.gradients) == (4 * max(g, d), 4 * (g + d))
    assert one.total(5) - one.total(4) == pytest.approx(1.2 * one.d_phase[1], abs=1)
    assert one.total() == one.total(2) and one.most_images(one.total(7)) == 7
    assert one.most_images(one.total(7) - 10) == 6 and one.most_images(1000) == 0


def test_half_precision_saves_half_but_for_the_pass_that_r1_differentiates():
    """Without R1 all maps shrink to half; with it D's pass over real images stays fp32."""
    config = {"resolution": 32, "base_ch": 16, "d_scales": 1, "r2_penalty": 0, "match_width": 0, **UNMATCHED}
    plain, lean = (estimate(ResolvedConfig(**config, r1_penalty=0), 1, p).d_phase[1] for p in ("no", "fp16"))
    full, mixed, other = (estimate(ResolvedConfig(**config), 1, p).d_phase[1] for p in ("no", "fp16", "bf16"))
    assert 0.5 < lean / plain < 0.65
    assert full - mixed == pytest.approx((plain - lean) / 2, rel=0.1)  # of the two passes only one is halved
    assert other == mixed


def test_auto_is_estimated_at_the_whole_share():
    options = {**TINY, "batch": "auto"}
    assert estimate(TrainConfig(**options).resolved(), 2, "no").micro_batch == 16  # 'auto' is 32 images
    with pytest.raises(UserError, match="not divisible by 3"):
        estimate(TrainConfig(**options).resolved(), 3, "no")


class Card:
    """Makes the losses of a Trainer fail above so many images; counts what they were asked."""

    def __init__(self, one: Trainer, room_d: int, room_g: int | None = None, error: Exception | None = None) -> None:
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.asked: list[tuple[str, int, frozenset]] = []
        one.discriminator_loss = self._limited("D", one.discriminator_loss, room_d)
        one.generator_loss = self._limited("G", one.generator_loss, room_d if room_g is None else room_g)

    def _limited(self, name, loss_of, room):
        def loss(batch, noise):
            found = loss_of(batch, noise)
            self.asked.append((name, len(batch.images), frozenset(found[1])))
            if len(batch.images) > room:
                raise self.error
            return found

        return loss


@pytest.mark.parametrize(("room_d", "room_g", "expected"), [(8, 8, 8), (7, 8, 4), (8, 3, 2), (1, 1, 1), (0, 8, 0)])
def test_the_largest_divisor_that_fits_is_found(shard_folder, room_d, room_g, expected):
    one = trainer(shard_folder)
    card = Card(one, room_d, room_g)
    assert largest_that_fits(one, 8) == expected
    sizes = [size for name, size, _ in card.asked if name == "D"]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) <= {8, 4, 2, 1}
    if expected in (1, 2, 4):  # accumulated: the second micro-batch finds the gradients of the first
        assert [name for name, size, _ in card.asked if size == expected] == ["D", "D", "G", "G"]


def test_penalties_are_tried_whatever_the_step(shard_folder):
    one = trainer(shard_folder, r2_penalty=1.0)
    one.step_number = 5
    card = Card(one, 8)
    largest_that_fits(one, 8)
    assert {"r1", "r2"} <= card.asked[0][2] and one.step_number == 5


def test_other_errors_are_not_taken_for_a_full_card(shard_folder):
    one = trainer(shard_folder)
    Card(one, 4, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_that_fits(one, 8)
    assert one.D.training and all(parameter.requires_grad for parameter in one.D.parameters())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and not is_out_of_memory(ValueError("out of memory"))


def state(one: Trainer) -> dict[str, torch.Tensor]:
    networks = {"G": one.G, "D": one.D, "average": one.ema.module}
    return {f"{n}.{k}": v.detach().clone() for n, network in networks.items() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("room_g", [8, 2])
def test_a_trial_leaves_no_trace(shard_folder, room_g):
    """Weights, batch-norm and spectral-norm buffers, gradients and two further steps: bitwise as without a trial."""
    options = {"g_norm": "batch", "lecam": 0.1, "r2_penalty": 1.0, "adaptive_r1": True, "adaptive_augment": True}
    tried, untouched = (trainer(shard_folder, **options) for _ in range(2))
    for one in (tried, untouched):
        one.step()
    before, losses_of = state(tried), (tried.discriminator_loss, tried.generator_loss)
    Card(tried, 8, room_g)
    assert largest_that_fits(tried, 8) == room_g
    tried.discriminator_loss, tried.generator_loss = losses_of
    after = state(tried)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for phase in tried.phases.values() for p in phase.parameters)
    for _ in range(2):
        mine, theirs = tried.step(), untouched.step()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    mine, theirs = state(tried), state(untouched)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_room_for_adams_moments_is_held_until_they_exist(shard_folder, monkeypatch):
    held, empty_like = [], torch.empty_like

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, torch.nn.Parameter):  # others are gradients of the passes tried
            held.append(tensor.numel())
        return empty_like(tensor)

    one = trainer(shard_folder)
    monkeypatch.setattr(micro_batch.torch, "empty_like", watched)
    largest_that_fits(one, 8)
    assert sum(held) == 2 * (count_parameters(one.G) + count_parameters(one.D))
    monkeypatch.undo()
    one.step()
    monkeypatch.setattr(micro_batch.torch, "empty_like", watched)
    held.clear()
    largest_that_fits(one, 8)
    assert held == []


def test_statistics_over_processes_are_not_waited_for(shard_folder):
    """SyncBatchNorm exchanges statistics in training mode only: in a trial it must not be in it, afterwards again."""
    one = trainer(shard_folder, g_norm="batch")
    one.G = one.phases["G"].network = nn.SyncBatchNorm.convert_sync_batchnorm(one.G)
    synced = [module for module in one.G.modules() if isinstance(module, nn.SyncBatchNorm)]
    modes = []
    for module in synced:
        module.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    assert largest_that_fits(one, 8) == 8
    assert len(modes) >= 2 * len(synced) > 0 and not any(modes)
    assert all(module.training for module in synced)


def test_a_cpu_takes_the_whole_share_without_a_trial(shard_folder):
    one = trainer(shard_folder)
    card = Card(one, 0)
    assert largest_micro_batch(one, 8) == 8 and not card.asked


def test_no_room_for_one_image_is_an_error_with_remedies(shard_folder):
    one = trainer(shard_folder)
    assert agreed(one, 4) == 4
    with pytest.raises(UserError) as caught:
        agreed(one, 0)
    assert str(caught.value) == (
        "out of memory on the CPU with a single image; try --d_scales 1 (in a new run) or --base_ch 2 (in a new run)"
    )


def test_remedies_carry_this_configs_values(monkeypatch):
    config = ResolvedConfig(resolution=64, base_ch=32, batch=24, batch_gpu=12, d_scales=2)
    said = explain_out_of_memory(config, torch.device("cpu"))
    assert said == (
        "out of memory on the CPU with 12 images at once; try --batch_gpu 6 or --d_scales 1 (in a new run) or "
        "--base_ch 16 (in a new run)"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole = ResolvedConfig(resolution=64, batch=30)
    assert "with 15 images at once; try --batch_gpu 5 or" in explain_out_of_memory(whole, torch.device("cpu"))
    card = type("Card", (), {"total_memory": 15 * 2**30})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 14 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for bf16, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, bf16=bf16: bf16)
        said = explain_out_of_memory(whole, torch.device("cuda:0"))
        assert "cuda:0 (14.0 of 15.0 GiB were allocated)" in said and f"--mixed_precision {name} or" in said
        assert "\n" not in said


@pytest.mark.dist
def test_two_processes_agree_on_the_smaller_and_train_as_if_never_tried(two):
    assert [facts["fits"] for facts in two.facts] == [[8, 4], [4, 4]]
    assert all(facts["as if never tried"] is True for facts in two.facts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_estimate_is_near_the_peak_of_a_gpu(shard_folder):
    """Of the allocator, that is without CUDA's context and what the allocator reserves beyond."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = ResolvedConfig(data=str(shard_folder), **(TINY | {"base_ch": 64}))
    one = Trainer(config, Accelerator(), ShardSet(shard_folder))
    torch.cuda.reset_peak_memory_stats()
    one.step()
    peak = torch.cuda.max_memory_allocated()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert 0.7 < estimate(config, 1, "no").total() / peak < 1.5


def test_running_out_of_memory_in_training_is_one_line_with_remedies(shard_folder, tmp_path, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(UserError, match=r"out of memory on .* with 8 images at once; try --batch_gpu 4 or .* or "):
        train(shard_folder, tmp_path / "run", iters=3)


def test_auto_is_resolved_before_training_and_recorded(shard_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("toolkit.train.largest_micro_batch", lambda trainer, share: share // 4)
    train(shard_folder, tmp_path / "run", iters=1, batch="auto")
    assert "batch_gpu auto: 8 images at once, 4 times" in capsys.readouterr().err
    assert {"batch: 32", "batch_gpu: 8"} <= set((tmp_path / "run" / "config.yaml").read_text().splitlines())

"""CLIP guidance: the distance against closed forms, the tower against open_clip's, and who may judge afterwards."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from evaluation import during_training
from evaluation.extractors.clip_images import load_clip
from evaluation.options import MeasureOptions
from evaluation.scoring.evaluator import Evaluator, Setting
from evaluation.scoring.judges import notes_on, refuse_guide, refuse_own
from evaluation.sources.opening import open_source
from shards import embed
from tests.running import TINY, lone_trainer, next_batch, train
from tests.test_compiling import compile_only
from tests.tiny_clip import NAME, save_weights
from toolkit.checks.memory import estimate
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import StepDraws
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.open_clip_encoder import load_open_clip
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.launching.processes import Processes
from toolkit.networks.clip_guidance import clip_distance, load_clip_guidance
from toolkit.run_folder.checkpoint import load_generator_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    return save_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip_shards(shard_folder, weights, tmp_path_factory) -> Path:
    """The shards of all tests, embedded by the first tiny CLIP: 32 numbers a caption."""
    folder = shutil.copytree(shard_folder, tmp_path_factory.mktemp("embedded") / "shards")
    embed.main(embed.EmbedOptions(data=folder, encoder=NAME, encoder_weights=weights[0], device="cpu"))
    return folder


def at_angle(*angles: float) -> tuple[Tensor, Tensor]:
    turned = torch.tensor(angles, dtype=torch.float64)
    a = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(angles), 3).double()
    return a, torch.stack([turned.cos(), turned.sin(), torch.zeros_like(turned)], dim=1)


def test_the_distance_is_the_squared_angle():
    angles = [1e-3, 0.1, math.pi / 6, 1.0, math.pi / 2, 2.5, 3.1]
    found = clip_distance(*at_angle(*angles))
    torch.testing.assert_close(found, torch.tensor(angles).square(), rtol=1e-5, atol=0)
    arccos = torch.linalg.vecdot(*at_angle(*angles)).clamp(-1, 1).arccos().square().float()
    torch.testing.assert_close(found[1:], arccos[1:], rtol=1e-5, atol=0)
    assert clip_distance(*at_angle(0.0)).item() == 0
    assert clip_distance(*at_angle(math.pi)).item() == pytest.approx(math.pi**2, rel=1e-6)


def test_the_gradient_is_twice_the_angle_and_finite_where_arccos_has_none():
    for angle in (0.0, 1e-6, 1e-3, 0.5, 2.0, 3.0, math.pi):
        turned = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
        a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        clip_distance(torch.stack([turned.cos(), turned.sin()])[None], a).sum().backward()
        if angle < math.pi:
            assert turned.grad.item() == pytest.approx(2 * angle, rel=1e-4, abs=1e-9)
    same = nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    for sign in (1, -1):
        a = same.clone().requires_grad_()
        clip_distance(a, sign * same).sum().backward()
        assert a.grad.isfinite().all() and (sign < 0 or not a.grad.any())


def test_it_is_the_angle_to_open_clips_own_vectors(clip_shards, weights):
    """Images of the tower's size: its own transform has nothing to resize."""
    identity = ShardSet(clip_shards).manifest.encoder
    guidance = load_clip_guidance(identity, weights[0])
    clip = load_open_clip(NAME, weights[0])
    random = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=random)
    from toolkit.data.images import to_pil

    inputs = torch.stack([clip.preprocess(to_pil(image)) for image in levels])
    text = nn.functional.normalize(torch.randn(3, 32, generator=random), dim=1)
    cosine = torch.cosine_similarity(clip.model.encode_image(inputs), text)
    found = guidance(levels.float() / 127.5 - 1, text)
    torch.testing.assert_close(found, cosine.arccos().square(), rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_the_images_and_not_the_tower(clip_shards, weights):
    guidance = load_clip_guidance(ShardSet(clip_shards).manifest.encoder, weights[0])
    images = torch.zeros(2, 3, 16, 16, requires_grad=True)
    guidance(images, nn.functional.normalize(torch.ones(2, 32), dim=1)).sum().backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert not any(weight.requires_grad for weight in guidance.parameters())
    assert not any("text" in name or "token" in name for name in guidance.state_dict())  # the image's half alone


def test_what_cannot_guide_is_one_line(clip_shards, weights, shard_folder, tmp_path):
    identity = ShardSet(clip_shards).manifest.encoder
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights")
    hashing = EncoderIdentity.of(HashingEncoder())
    cases = [
        (hashing, None, "embedded by 'hashing'; embed them with CLIP"),
        (identity, weights[1], "clip_guidance: the loaded encoder .* is not the one of the training data: cosine"),
        (identity, tmp_path / "none.pt", "clip_guidance: CLIP weights .*none.pt: no such file"),
        (identity, broken, "clip_guidance: cannot load .*--clip_guidance_weights FILE"),
        (dataclasses.replace(identity, name="ours"), weights[0], "clip_guidance: unknown CLIP architecture 'ours'"),
    ]
    for encoder, file, message in cases:
        with pytest.raises(UserError, match=message) as error:
            load_clip_guidance(encoder, file)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="embedded by 'hashing'"):
        lone_trainer(shard_folder, clip_guidance=0.2)
    with pytest.raises(UserError, match="clip_guidance is -1"):
        ResolvedConfig(clip_guidance=-1)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_enters_gs_loss_with_its_weight(clip_shards, weights, precision):
    """Everything else equal, the losses differ by weight times distance; D's is untouched."""
    how = {"cond_dim": 32, "clip_guidance_weights": str(weights[0])}
    plain = lone_trainer(clip_shards, precision, **how)
    guided = lone_trainer(clip_shards, precision, **how, clip_guidance=0.5)
    found, stats = [], {}
    for one in (plain, guided):
        one.fetch()
        batch = one.feed.take()[0][0]
        loss, stats = one.generator_loss(batch, StepDraws(0, 8, 0, 0))
        found.append(loss.item())
    assert found[1] - found[0] == pytest.approx(0.5 * stats["clip_distance"].item(), rel=1e-4)
    assert 0 < stats["clip_distance"].item() < math.pi**2 and stats["loss_g"].item() == pytest.approx(found[0])
    assert not plain.guided and guided.guided
    AcceleratorState._reset_state(reset_partial_state=True)


def test_guidance_knows_the_caption_whatever_noise_and_ramp_do_to_the_networks_text(clip_shards, weights):
    how = {"cond_dim": 32, "clip_guidance": 0.5, "clip_guidance_weights": str(weights[0])}
    one = lone_trainer(clip_shards, **how, text_noise=0.7, unconditional_kimg=1)
    batch = next_batch(one)
    inputs = one.inputs(batch, StepDraws(0, 8, 0, 0), "G", "augment for G", shows_real=False)
    assert torch.equal(inputs.caption, batch.text) and not inputs.text.any()
    _, stats = one.objective.generator(inputs)
    fake = one.G(inputs.z, inputs.text)
    torch.testing.assert_close(stats["clip_distance"], one.objective.guidance(fake, batch.text).mean())


def test_guidance_turns_images_towards_their_captions(clip_shards, weights):
    """G alone against CLIP: twenty steps bring the angle down."""
    one = lone_trainer(clip_shards, cond_dim=32, clip_guidance=100.0, clip_guidance_weights=str(weights[0]), lr_g=2e-3)
    angles = [one.step()["clip_distance"].item() for _ in range(20)]
    assert sum(angles[-3:]) < 0.9 * sum(angles[:3])


def test_compiled_it_is_the_same(clip_shards, weights):
    """G's loss alone is compiled: the other parts know nothing of CLIP."""
    torch._dynamo.reset()
    how = {"cond_dim": 32, "clip_guidance": 0.5, "clip_guidance_weights": str(weights[0]), "lr_g": 1e-6, "lr_d": 1e-6}
    eager, other = (lone_trainer(clip_shards, d_scales=1, diffaug="color", **how) for _ in range(2))
    (generator,) = compile_only(other, "generator")
    expected, found = eager.step(), other.step()
    for name in ("loss_g", "clip_distance", "grad_norm_g"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-3), name
    assert generator.compiled is not None
    torch._dynamo.reset()


def test_the_estimate_counts_the_tower(clip_shards, weights):
    without, with_it = (estimate(ResolvedConfig(**TINY, clip_guidance=w), 1, "no", NAME) for w in (0.0, 1.0))
    guidance = load_clip_guidance(ShardSet(clip_shards).manifest.encoder, weights[0])
    tensors = [*guidance.parameters(), *guidance.buffers()]
    assert with_it.networks - without.networks == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert with_it.g_phase[1] > without.g_phase[1] and with_it.d_phase == without.d_phase


def test_a_guided_generator_says_so_and_is_not_judged_by_its_guide(clip_shards, weights, tmp_path):
    """By name before anything is loaded, by vectors where the name is another; also after going on without."""
    how = {"cond_dim": 32, "clip_guidance_weights": str(weights[0])}
    train(clip_shards, tmp_path / "plain", iters=1, **how)
    train(clip_shards, tmp_path / "run", iters=1, clip_guidance=0.2, **how)
    train(clip_shards, tmp_path / "run", iters=2, **how)
    files = [tmp_path / name / "generator.safetensors" for name in ("plain/ckpt_0000001", "run/ckpt_0000001",
                                                                   "run/ckpt_0000002")]  # fmt: skip
    assert [load_generator_file(file).guided for file in files] == [False, True, True]
    fake = open_source(tmp_path / "run", count=8, prompts=clip_shards)
    assert fake.guided and fake.identity.name == NAME
    architecture, _, tag = NAME.partition("/")
    clip = {"clip_model": architecture, "clip_pretrained": tag, "clip_weights": weights[0]}
    options = MeasureOptions(metrics="clip_score", **clip)
    setting = Setting(Processes(None, 60), CPU)
    with pytest.raises(UserError, match=r"^clip_score would be by .*in its loss \(clip_guidance\).*--clip_model"):
        Evaluator(options, None, setting)(fake)
    with pytest.raises(UserError, match=f"by {architecture}/renamed, which as {NAME} was in its loss"):
        Evaluator(dataclasses.replace(options, clip_pretrained="renamed"), None, setting)(fake)
    other = dataclasses.replace(options, clip_pretrained="renamed", clip_weights=weights[1])
    report = Evaluator(other, None, setting)(fake)
    assert any("CLIP was in this generator's loss" in note for note in report["notes"])
    unguided = dataclasses.replace(fake, guided=False)
    report = Evaluator(options, None, setting)(unguided)
    assert any("self-serving" in note for note in report["notes"]) and notes_on(unguided, by_clip=True) == []


def test_training_does_not_start_with_its_guide_as_a_judge(clip_shards):
    identity = dataclasses.replace(EncoderIdentity.of(HashingEncoder()), name="ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(UserError, match="in its loss"):
        refuse_own("", identity, MeasureOptions(metrics="clip_fd"))
    refuse_own("", dataclasses.replace(identity, name="ViT-L-14/laion2b_s32b_b82k"), MeasureOptions(metrics="clip_fd"))
    shards = ShardSet(clip_shards)
    shards.manifest = dataclasses.replace(shards.manifest, encoder=identity)
    options = {"score": "none", "eval_every": 1, "metrics": "clip_score", "eval_count": 64}
    with pytest.raises(UserError, match="^clip_score would be by .*leave them out of --metrics"):
        during_training.check(ResolvedConfig(**TINY, **options, clip_guidance=0.2), shards)
    with pytest.raises(UserError, match="at least 64 images"):  # the next check: this one has passed
        during_training.check(ResolvedConfig(**TINY, **options), shards)


def test_a_loaded_clip_is_known_by_its_vectors(clip_shards, weights):
    identity = ShardSet(clip_shards).manifest.encoder
    with pytest.raises(UserError, match="clip_fd would be by"):
        refuse_guide(["fid", "clip_fd"], identity, load_clip("tiny-test", "else", weights[0], CPU))
    refuse_guide(["fid", "clip_fd"], identity, load_clip("tiny-test", "else", weights[1], CPU))

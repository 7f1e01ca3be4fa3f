"""A discriminator on frozen features: the library's own features, gradients where they belong, and no trace in files.

All networks have random weights: what is tested is the plumbing, not what they know of images.
"""

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import toolkit.train
from evaluation import during_training
from evaluation.options import MeasureOptions
from evaluation.scoring.evaluator import Evaluator, Setting
from evaluation.scoring.judges import notes_on, refuse_own
from evaluation.sources.opening import open_source
from tests import tiny_clip
from tests.running import TENSORS, TINY, assert_equal_runs, logged, lone_trainer, next_batch, train
from tests.scored import untrained, write_shards
from tests.test_compiling import compile_only
from tests.test_memory import random_batch
from tests.workers.two_processes import INSTEAD
from toolkit.checks.memory import estimate, saved_bytes
from toolkit.config import ResolvedConfig
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import StepDraws
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import UserError
from toolkit.launching.processes import Processes
from toolkit.networks.architecture import ModelConfig
from toolkit.networks.backbones import load_backbone, spread, weightless_backbone
from toolkit.networks.cost import costs
from toolkit.networks.losses import gradient_penalty
from toolkit.networks.models import Discriminator, Look, count_parameters
from toolkit.run_folder.checkpoint import NETWORKS, GeneratorFile, Snapshot, load_generator_file, save
from toolkit.training.trainer import frozen

TINY_CLIP = f"open_clip/{tiny_clip.NAME}"
SMALL = {"resolution": 16, "base_ch": 4, "cond_dim": 24, "z_dim": 8, "match_width": 0}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    return tiny_clip.save_weights(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """timm's smallest ViT and CNN as their files would be."""
    folder, found = tmp_path_factory.mktemp("timm"), {}
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(0)
        found[name] = folder / f"{name}.safetensors"
        save_file(timm.create_model(name, pretrained=False).state_dict(), found[name])
    return found


def some_images(count: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def texts(count: int = 3, width: int = 24) -> Tensor:
    random = torch.randn(count, width, generator=torch.Generator().manual_seed(2))
    return nn.functional.normalize(random, dim=1)


def discriminator(backbone, seed: int = 0, **options) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(ModelConfig(**SMALL, frozen_backbone=backbone.name, **options), backbone)


@pytest.mark.parametrize("count, expected", [
    (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [1, 2, 3, 4]), (12, [2, 5, 8, 11]),
    (24, [5, 11, 17, 23]),
])  # fmt: skip
def test_depths_are_evenly_spread_up_to_the_last(count, expected):
    assert spread(count) == expected


@pytest.mark.parametrize("name, indices, channels", [
    ("test_vit", [1, 2, 4, 5], [64] * 4), ("test_resnet", [1, 2, 3, 4], [32, 48, 192, 96]),
])  # fmt: skip
def test_timm_features_are_the_librarys_own_on_its_own_preprocessing(files, name, indices, channels):
    """Images that need no resizing, in timm's own evaluation transform; intermediates by timm's own call."""
    backbone = load_backbone(f"timm/{name}", files[name])
    assert (backbone.indices, backbone.channels, backbone.input.side) == (indices, channels, 160)
    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(files[name]))
    levels = torch.randint(0, 256, (2, 160, 160, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model) | {"crop_pct": 1.0})
    from PIL import Image

    inputs = torch.stack([transform(Image.fromarray(image.numpy())) for image in levels])
    expected = model.forward_intermediates(inputs, indices=indices, intermediates_only=True)
    found = backbone(levels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_open_clip_features_are_the_towers_own_with_the_mean_of_the_weights(clips):
    backbone = load_backbone(TINY_CLIP, clips[0])
    model = open_clip.create_model("tiny-test", pretrained=str(clips[0])).eval()
    config = open_clip.get_model_preprocess_cfg(model)
    images = some_images(2, 32)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    expected = model.visual.forward_intermediates(((images + 1) / 2 - mean) / std)["image_intermediates"]
    assert backbone.indices == [0] and backbone.channels == [32]
    torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-5)


def test_small_and_large_images_are_resized_with_antialias(clips):
    backbone = load_backbone(TINY_CLIP, clips[0])
    large = some_images(1, 64)
    small = nn.functional.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(backbone(large), backbone(small))
    assert backbone(some_images(1, 16))[0].shape == (1, 32, 2, 2)


def test_dinov2_is_brought_to_224_px():
    """Its own 518 px would be 1,369 tokens an image, from 64 px of content."""
    backbone = weightless_backbone("timm/vit_small_patch14_dinov2.lvd142m")
    assert backbone.input.side == 224 and backbone.indices == [2, 5, 8, 11]
    assert backbone.network.pos_embed.shape == (1, 1 + 16 * 16, 384)


@pytest.mark.parametrize("name, side", [("test_resnet", 64), ("test_vit", 32)])
def test_a_smaller_size_is_the_same_network_on_smaller_images(files, name, side):
    """A ViT's positions are interpolated by timm itself; the fingerprint stays that of the file."""
    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(files[name]))
    if name == "test_vit":
        model.set_input_size((side, side))
    backbone = load_backbone(f"timm/{name}", files[name], side)
    inputs = backbone.input(some_images(2, side))  # no resizing: mean and deviation alone
    assert inputs.shape[-1] == side
    expected = model.forward_intermediates(inputs, indices=backbone.indices, intermediates_only=True)
    for mine, theirs in zip(backbone(some_images(2, side)), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    own = load_backbone(f"timm/{name}", files[name])
    assert backbone.sha256 == own.sha256 and own.input.side == 160
    config = ModelConfig(**SMALL, frozen_backbone=f"timm/{name}", frozen_size=side)
    assert Discriminator(config).frozen.backbone.input.side == side
    assert costs(config)["D"].multiply_adds < costs(dataclasses.replace(config, frozen_size=0))["D"].multiply_adds


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_is_loaded_bitwise_and_its_fingerprint_is_of_the_weights(files, tmp_path, suffix):
    state, path = load_file(files["test_vit"]), tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = load_backbone("timm/test_vit", path)
    found = backbone.network.state_dict()
    assert len(found) == len(state) - 2  # but for the classifier
    assert all(torch.equal(found[name], state[name]) for name in found)
    assert backbone.sha256 == load_backbone("timm/test_vit", files["test_vit"]).sha256
    state["blocks.3.mlp.fc1.bias"][0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    assert backbone.sha256 != load_backbone("timm/test_vit", tmp_path / "other.safetensors").sha256


def write(path: Path, what: object) -> Path:
    save_file(what, path) if path.suffix == ".safetensors" else torch.save(what, path)
    return path


def test_bad_names_and_files_are_one_line(files, clips, tmp_path):
    half = {name: value for name, value in load_file(files["test_vit"]).items() if "blocks.4" not in name}
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    pickled = write(tmp_path / "pickled.pth", {"state_dict": Path("a pickled object")})
    cases = [
        ("timm/resnet81", None, "unknown timm model 'resnet81'; did you mean 'resnet"),
        ("timm/resnet18.a7_in1k", None, "no weights 'a7_in1k' of resnet18; did you mean 'a[0-9]_in1k'"),
        ("open_clip/ViT-B-31/openai", None, "unknown CLIP architecture 'ViT-B-31'; did you mean"),
        ("timm/test_vit", tmp_path / "none.pth", "none.pth: no such file; correct --frozen_weights"),
        ("timm/test_vit", broken, "cannot load timm/test_vit: .*--frozen_weights FILE"),
        ("timm/test_vit", pickled, "cannot load timm/test_vit: .*--frozen_weights FILE"),
        ("timm/test_vit", write(tmp_path / "half.safetensors", half), "lacks 1[0-9] of its tensors, such as blocks.4"),
        ("timm/test_vit", files["test_resnet"], "cannot load timm/test_vit: .*--frozen_weights FILE"),
        (TINY_CLIP, tmp_path / "none.pt", "none.pt: no such file; correct --frozen_weights"),
        (TINY_CLIP, broken, "cannot load .*--frozen_weights FILE"),
    ]  # fmt: skip
    for name, weights, message in cases:
        with pytest.raises(UserError, match=message) as error:
            load_backbone(name, weights)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="takes no images of 72 pixels .*change --frozen_size"):
        load_backbone("timm/test_vit", files["test_vit"], 72)


@pytest.mark.parametrize("options, message", [
    ({"frozen_backbone": "resnet18"}, "frozen_backbone is 'resnet18'; it must be 'timm/NAME' or"),
    ({"frozen_backbone": "open_clip/ViT-B-32"}, "'open_clip/MODEL/TAG'"),
    ({"frozen_backbone": "timm/inception_v3.tv_in1k"}, "low FID whatever it draws"),
    ({"frozen_backbone": "timm/tf_inception_v3"}, "choose another backbone"),
    ({"d_scales": 0}, "d_scales is 0; it must be from 1 to"),
    ({"d_scales": 0, "frozen_backbone": "timm/test_vit"}, "--r1_penalty 0 --r2_penalty 0"),
    ({"d_scales": 0, "frozen_backbone": "timm/test_vit", "r1_penalty": 0, "r2_penalty": 1}, "r2_penalty 1 with"),
    ({"frozen_weights": "file.pth"}, "frozen_weights without frozen_backbone"),
    ({"frozen_size": 64}, "frozen_size without frozen_backbone"),
    ({"frozen_size": 16, "frozen_backbone": "timm/test_vit"}, "frozen_size is 16; it must be 0 or from 32"),
    ({"frozen_size": 64, "frozen_backbone": TINY_CLIP}, "open_clip's networks take their own size"),
])  # fmt: skip
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        ResolvedConfig(**options)
    ResolvedConfig(frozen_backbone="timm/test_vit", **INSTEAD)


@pytest.mark.parametrize("scales", [0, 2])
def test_a_logit_per_scale_and_depth_and_the_caption_counts(files, scales):
    D = discriminator(load_backbone("timm/test_vit", files["test_vit"]), d_scales=scales)
    look = Look(some_images(), texts(), texts().flip(0))
    (verdict,) = D(look)
    assert verdict.logits.shape == verdict.mismatched.shape == (3, scales + 4)
    torch.testing.assert_close(verdict.logits[1], verdict.mismatched[1])  # row 1 keeps its own caption in the flip
    assert (verdict.logits[0] - verdict.mismatched[0]).abs().min() > 0
    (with_maps,) = D(look._replace(features=True))
    assert len(with_maps.features) == 4 + sum(len(scale.blocks) for scale in D.scales)
    for found in with_maps.features[-4:]:  # normalised over channels
        torch.testing.assert_close(found.mean(dim=1), torch.zeros(3, 10, 10), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.var(dim=1, correction=0), torch.ones(3, 10, 10), rtol=1e-3, atol=0)


def test_the_trained_columns_are_those_of_a_d_without_a_backbone(clips):
    beside = discriminator(load_backbone(TINY_CLIP, clips[0]), d_scales=2)
    torch.manual_seed(0)
    alone = Discriminator(ModelConfig(**SMALL, d_scales=2))
    look = Look(some_images(), texts())
    assert torch.equal(beside(look)[0].logits[:, :2], alone(look)[0].logits)


def test_gradients_reach_the_images_and_the_heads_and_never_the_backbone(clips):
    D = discriminator(load_backbone(TINY_CLIP, clips[0]), d_scales=0)
    images = some_images().requires_grad_()
    D(Look(images, texts()))[0].logits.sum().backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in D.parameters())
    with frozen(D):
        pass  # thaws what it finds
    D.train()
    backbone = D.frozen.backbone
    assert all(weight.grad is None and not weight.requires_grad for weight in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_r1_is_that_of_the_trained_part_alone(clips):
    """With the frozen columns beside them, and with the gradient it gives to D's weights."""
    beside = discriminator(load_backbone(TINY_CLIP, clips[0]), d_scales=2)
    torch.manual_seed(0)
    alone = Discriminator(ModelConfig(**SMALL, d_scales=2))
    found = []
    for D in (beside, alone):
        images = some_images().requires_grad_()
        (verdict,) = D(Look(images, texts(), penalised=True))
        penalty = gradient_penalty(verdict.logits[:, :2], images)
        penalty.sum().backward()
        found.append((penalty.detach(), [weight.grad for weight in D.scales.parameters()]))
    assert torch.equal(found[0][0], found[1][0]) and (found[0][0] > 0).all()
    pairs = list(zip(*(gradients for _, gradients in found), strict=True))
    assert all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)
    assert sum(a is not None for a, _ in pairs) > 10


def test_penalised_images_keep_their_graph_out_of_the_backbone(clips):
    D = discriminator(load_backbone(TINY_CLIP, clips[0]), d_scales=1)
    images = some_images().requires_grad_()
    (verdict,) = D(Look(images, texts(), penalised=True))
    of_trained, of_frozen = (
        torch.autograd.grad(columns.sum(), images, retain_graph=True)[0] for columns in verdict.logits.split(1, dim=1)
    )
    assert of_trained.any() and not of_frozen.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (coarse,) = D(Look(images, texts(), penalised=True))
    assert coarse.logits.dtype == torch.float32
    assert torch.equal(coarse.logits[:, 0], verdict.logits[:, 0])  # R1's in fp32
    assert 1e-4 < (coarse.logits[:, 1] - verdict.logits[:, 1]).abs().max() < 0.5  # under autocast as ever


def test_the_backbone_is_in_no_registry_and_moves_with_d(clips):
    backbone = load_backbone(TINY_CLIP, clips[0])
    D = discriminator(backbone, d_scales=1)
    inside = {id(tensor) for tensor in (*backbone.parameters(), *backbone.buffers())}
    assert not inside & {id(tensor) for tensor in (*D.parameters(), *D.buffers())}
    assert all("scales." in name or "frozen.heads." in name for name in D.state_dict())
    blank = Discriminator(ModelConfig(**SMALL, d_scales=1, frozen_backbone=TINY_CLIP))
    assert count_parameters(D) == count_parameters(blank)
    D.double()
    assert {tensor.dtype for tensor in (*backbone.parameters(), *backbone.buffers())} == {torch.float64}
    assert D(Look(some_images().double(), texts().double()))[0].logits.dtype == torch.float64
    D.float().to(memory_format=torch.channels_last)
    assert backbone.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    D.to("meta")
    assert all(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))


def test_without_weights_d_is_counted_and_never_asked(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("downloads"))
    D = Discriminator(ModelConfig(**SMALL, d_scales=0, frozen_backbone="timm/vit_small_patch14_dinov2.lvd142m"))
    heads = 4 * (384 * 64 + 64 + 65 * 64 + 64 + 64 + 1 + 24 * 256 + 256 + 256 * 64)
    assert count_parameters(D) == heads
    with pytest.raises((RuntimeError, NotImplementedError)):
        D(Look(some_images(), texts()))


@pytest.mark.parametrize("options", [{}, {"r2_penalty": 1.0}, INSTEAD], ids=["beside", "beside+r2", "instead"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_steps(shard_folder, clips, options, precision):
    how = {**options, "frozen_backbone": TINY_CLIP, "frozen_weights": str(clips[0]), "feature_matching": 1.0}
    one = lone_trainer(shard_folder, precision, **how)
    D, backbone = one.unwrap(one.D), one.unwrap(one.D).frozen.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    heads = {name: value.clone() for name, value in D.frozen.heads.named_parameters()}
    for _ in range(2):
        stats = one.step()
        assert all(value.isfinite() for value in stats.values())
    assert ("r1" in one.step()) is False and one.step_number == 3  # at multiples of 16
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(not torch.equal(value, heads[name]) for name, value in D.frozen.heads.named_parameters())
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("names", "steps"), [(["judged"], 1), pytest.param(["judged", "generator"], 2, marks=pytest.mark.slow)]
)
def test_compiled_steps_are_the_eager_ones(shard_folder, clips, names, steps):
    """One step with R1, one without. What D is shown, G's images, comes before the features."""
    torch._dynamo.reset()
    how = {"frozen_backbone": TINY_CLIP, "frozen_weights": str(clips[0]), "r1_interval": 2, "lr_g": 1e-6, "lr_d": 1e-6}
    eager, other = (lone_trainer(shard_folder, d_scales=1, diffaug="", **how) for _ in range(2))
    parts = compile_only(other, *names)
    for _ in range(steps):
        expected, found = eager.step(), other.step()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    assert all(part.compiled is not None for part in parts)
    torch._dynamo.reset()


def test_a_resumed_run_is_the_uninterrupted_one_and_no_file_holds_the_backbone(shard_folder, clips, tmp_path):
    how = {"frozen_backbone": TINY_CLIP, "frozen_weights": str(clips[0]), "d_scales": 1, "r1_interval": 2}
    train(shard_folder, tmp_path / "whole", iters=4, **how)
    train(shard_folder, tmp_path / "halves", iters=2, **how)
    train(shard_folder, tmp_path / "halves", iters=4, **how)
    assert_equal_runs(tmp_path / "whole", tmp_path / "halves", 4)
    folder = tmp_path / "whole" / "ckpt_0000004"
    names = {name.split(".")[1] for name in load_file(folder / NETWORKS) if name.startswith("D.")}
    assert names == {"scales", "frozen"}
    assert all("backbone" not in name and "visual" not in name for file in TENSORS for name in load_file(folder / file))
    state = json.loads((folder / "state.json").read_text())
    assert state["frozen_sha256"] == load_backbone(TINY_CLIP, clips[0]).sha256
    assert load_generator_file(folder / "generator.safetensors").config.frozen_backbone == TINY_CLIP
    with pytest.raises(UserError, match="other weights of open_clip/tiny-test/local .* --frozen_weights"):
        train(shard_folder, tmp_path / "halves", iters=5, **how | {"frozen_weights": str(clips[1])})
    with pytest.raises(UserError, match="another architecture .frozen_backbone open_clip/tiny-test/local -> ."):
        train(shard_folder, tmp_path / "halves", iters=5, d_scales=1)


def test_a_run_without_a_backbone_records_nothing_of_it(shard_folder, tmp_path):
    train(shard_folder, tmp_path, iters=1)
    folder = tmp_path / "ckpt_0000001"
    assert "frozen_sha256" not in json.loads((folder / "state.json").read_text())
    assert not any("frozen" in name for name in load_file(folder / NETWORKS))


@pytest.mark.parametrize("options", [{}, INSTEAD], ids=["beside", "instead"])
def test_the_memory_estimate_is_what_a_real_step_saves(shard_folder, clips, options):
    how = {"frozen_backbone": TINY_CLIP, "frozen_weights": str(clips[0]), **options}
    one = lone_trainer(shard_folder, **how)
    D, expected = one.unwrap(one.D), estimate(one.config, 1, "no")
    backbone = [*D.frozen.backbone.parameters(), *D.frozen.backbone.buffers()]
    plain = [tensor for network in (one.G, D) for tensor in (*network.parameters(), *network.buffers())]
    assert expected.networks == sum(tensor.numel() * tensor.element_size() for tensor in (*plain, *backbone))
    assert expected.moments == 8 * (count_parameters(one.G) + count_parameters(D))
    batch, noise = random_batch(8, one.config), StepDraws(0, 8, 0, 0)
    held = [*plain, *backbone]
    found = saved_bytes(lambda: one.discriminator_loss(batch, noise), held)
    assert expected.d_phase[0] + 8 * expected.d_phase[1] == pytest.approx(found, rel=2e-3)
    with frozen(one.D):
        found = saved_bytes(lambda: one.generator_loss(batch, noise), held)
    assert expected.g_phase[0] + 8 * expected.g_phase[1] == pytest.approx(found, rel=2e-3)


def test_a_dry_run_downloads_nothing(capsys, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("downloads"))
    config = ResolvedConfig(**TINY | INSTEAD, frozen_backbone="timm/vit_small_patch14_dinov2.lvd142m", dry_run=True)
    toolkit.train.main(config)
    said = capsys.readouterr().out
    assert "frozen_backbone: timm/vit_small_patch14_dinov2.lvd142m" in said and "# Discriminator: " in said


OWN_CLIP, OWN_DINOV2 = "open_clip/ViT-B-32/laion2b_s34b_b79k", "timm/vit_large_patch14_dinov2.lvd142m"


@pytest.mark.parametrize("backbone, metrics, refused", [
    (OWN_CLIP, "clip_score", "clip_score"),
    (OWN_CLIP, "fid,clip_fd,retrieval,joint_fd", "clip_fd, retrieval, joint_fd"),
    ("open_clip/ViT-B-32-quickgelu/laion2b_s34b_b79k", "clip_fd", "clip_fd"),
    (OWN_CLIP, "all", "clip_fd, clip_score, retrieval, joint_fd"),
    (OWN_DINOV2, "fid,dinov2_fd", "dinov2_fd"),
    ("timm/vit_large_patch14_dinov2", "dinov2_fd", "dinov2_fd"),
    (OWN_CLIP, "fid,kid,dinov2_fd", ""),
    ("open_clip/ViT-B-32/openai", "clip_score", ""),
    (OWN_DINOV2, "fid,clip_score", ""),
    ("timm/vit_small_patch14_dinov2.lvd142m", "dinov2_fd", ""),
    ("timm/vit_large_patch14_reg4_dinov2.lvd142m", "dinov2_fd", ""),
    ("", "all", ""),
])  # fmt: skip
def test_the_backbone_is_no_judge(backbone, metrics, refused):
    options = MeasureOptions(metrics=metrics)
    if not refused:
        return refuse_own(backbone, None, options)
    option = "--clip_model" if backbone.startswith("open_clip") else "--dinov2_model"
    with pytest.raises(UserError, match=f"^{refused} would be by .*discriminator was trained.*{option}"):
        refuse_own(backbone, None, options)


def test_another_clip_is_let_through(clips):
    refuse_own(OWN_CLIP, None, MeasureOptions(metrics="clip_score", clip_model="ViT-L-14", clip_pretrained="openai"))


def test_a_checkpoint_tells_its_backbone_and_is_not_scored_by_it(tmp_path):
    config = ModelConfig(resolution=16, base_ch=4, z_dim=8, d_scales=0, frozen_backbone=OWN_CLIP)
    tensors = {name: tensor.contiguous() for name, tensor in untrained(16, 4).state_dict().items()}
    file = GeneratorFile(tensors, config, EncoderIdentity.of(HashingEncoder()), 1)
    save(tmp_path / "run", Snapshot(file, {}, {}, {}), keep=0)
    prompts = write_shards(tmp_path / "shards", 8)
    fake = open_source(tmp_path / "run", count=8, prompts=prompts)
    assert fake.frozen_backbone == OWN_CLIP and not fake.guided
    evaluator = Evaluator(MeasureOptions(metrics="clip_score"), None, Setting(Processes(None, 60), torch.device("cpu")))
    with pytest.raises(UserError, match="clip_score would be by ViT-B-32/laion2b_s34b_b79k.*--clip_model"):
        evaluator(fake)
    (note,) = notes_on(fake, by_clip=True)
    assert OWN_CLIP in note and notes_on(dataclasses.replace(fake, frozen_backbone=""), by_clip=True) == []


def test_training_does_not_start_with_its_backbone_as_a_judge(tmp_path):
    shards = write_shards(tmp_path / "shards", 72)
    options = {**TINY, "data": str(shards), "score": "none", "eval_every": 2, "score_count": 64}
    config = ResolvedConfig(**options, frozen_backbone=OWN_CLIP, metrics="fid,clip_score")
    with pytest.raises(UserError, match="^clip_score would be by .* leave them out of --metrics .*--clip_model"):
        during_training.check(config, ShardSet(shards))
    scored = dataclasses.replace(config, metrics="fid", score="r_precision")
    with pytest.raises(UserError, match="^retrieval would be by"):
        during_training.check(scored, ShardSet(shards))
    during_training.check(dataclasses.replace(config, metrics="fid,kid"), ShardSet(shards))


def test_one_batch_of_the_trainer_meets_augmented_images(shard_folder, clips, monkeypatch):
    """DiffAugment comes before the features, for both networks."""
    how = {"frozen_backbone": TINY_CLIP, "frozen_weights": str(clips[0]), "frozen_r1": 0, **INSTEAD}
    one = lone_trainer(shard_folder, **how)
    seen = []
    backbone = one.unwrap(one.D).frozen.backbone
    blank = torch.zeros(16, 3, 32, 32)
    monkeypatch.setattr(backbone.input, "forward", lambda images: seen.append(images) or blank[: len(images)])
    batch, noise = next_batch(one), StepDraws(0, 8, 0, 0)
    monkeypatch.setattr(one.objective, "augment", lambda images, numbers: torch.full_like(images, 0.25))
    one.discriminator_loss(batch, noise), one.generator_loss(batch, noise)
    assert [len(images) for images in seen] == [16, 8] and all((images == 0.25).all() for images in seen)


@pytest.mark.dist
def test_two_processes_train_what_one_trains(two, shard_folder, tmp_path):
    """Group norm: the same batch is the same step, up to the order of sums."""
    weights = str(two.folder / "test_vit.safetensors")
    train(shard_folder, tmp_path, iters=1, frozen_backbone="timm/test_vit", frozen_weights=weights, **INSTEAD)
    (of_one,), (of_two,) = logged(tmp_path), logged(two.folder / "frozen")
    for name in ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g"):
        assert of_one[name] == pytest.approx(of_two[name], rel=1e-3), name

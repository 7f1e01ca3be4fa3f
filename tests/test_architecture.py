"""The options of the networks, each and all together, through whatever touches a network."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from benchmarks.operations import Operations
from tests.running import assert_equal_runs, lone_trainer, train
from tests.test_checkpoint import snapshot
from tests.test_layers import awake, random
from tests.test_models import inputs, tiny
from toolkit.command_line import dump, parse
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.errors import UserError
from toolkit.inference.folding import FoldedGenerator
from toolkit.inference.sampling import load_generator
from toolkit.networks.architecture import EARLIER, ModelConfig
from toolkit.networks.attention import SelfAttention
from toolkit.networks.cost import count_operations
from toolkit.networks.losses import gradient_penalty
from toolkit.networks.models import Discriminator, Generator, Look, count_parameters
from toolkit.run_folder import checkpoint
from toolkit.train import main
from toolkit.training.earlier import TRAINING

EVERYTHING = {
    "g_norm": "rms", "g_modulation": "text+noise", "g_text_blocks": True, "attention": "4,8", "skip_excitation": True,
    "minibatch_std": True, "residual_scale": 0.5, "d_projections": 2, "d_base_ch": 8,
}  # fmt: skip
OF_G = [
    {"g_norm": "group"}, {"g_norm": "instance"}, {"g_norm": "rms"}, {"g_norm": "pixel"},
    {"g_modulation": "text+noise"}, {"g_text_blocks": True}, {"g_modulation": "text+noise", "g_text_blocks": True},
    {"attention": "4,8"}, {"skip_excitation": True}, {"residual_scale": 0.25}, EVERYTHING,
]  # fmt: skip
OF_D = [{"attention": "4,8"}, {"minibatch_std": True}, {"d_projections": 2}, {"d_base_ch": 8}, EVERYTHING]
NEW = [{name: value} for name, value in EVERYTHING.items()]


def named(options: dict) -> str:
    return "everything" if options is EVERYTHING else ",".join(f"{name}={value}" for name, value in options.items())


@pytest.mark.parametrize("options", OF_G, ids=named)
def test_images_do_not_depend_on_the_others_and_every_weight_counts(options):
    config = tiny(**{"g_norm": "group"} | options)
    G, (z, text, _) = awake(Generator(config)).double(), inputs(config)
    images = G(z.double(), text.double())
    assert images.shape == (3, 3, 16, 16) and images.abs().max() <= 1
    torch.testing.assert_close(images[:1], G(z[:1].double(), text[:1].double()))
    (images * random(*images.shape)).sum().backward()
    dead = [name for name, weight in G.named_parameters() if weight.grad is None or not weight.grad.abs().max() > 0]
    # instance norm takes away what is constant over a channel
    assert all("bias" in name for name in dead) and (not dead or options == {"g_norm": "instance"})


@pytest.mark.parametrize("options", OF_D, ids=named)
@pytest.mark.parametrize("count", [1, 3])
def test_r1_can_be_differentiated(options, count):
    """Its derivative by the images against a finite difference, and a finite one by every weight."""
    config = tiny(**options)
    D, (_, text, images) = awake(Discriminator(config)).double(), inputs(config, n=count)
    text, images, direction = text.double(), images.double().requires_grad_(), random(*images.shape, seed=1)

    def penalty(shift: float = 0.0) -> torch.Tensor:
        """`gradient_penalty`, which ends in fp32, too coarse for a difference."""
        moved = images + shift * direction
        (verdict,) = D(Look(moved, text, penalised=True))
        (gradient,) = torch.autograd.grad(verdict.logits.mean(dim=1).sum(), moved, create_graph=True)
        return gradient.square().sum() / 2

    found = (torch.autograd.grad(penalty(), images)[0] * direction).sum()
    step = 1e-6
    expected = (penalty(step) - penalty(-step)).item() / (2 * step)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    curved = "attention" in options or ("minibatch_std" in options and count > 1)  # the rest of D is made of planes
    assert bool(found.abs() > 1e-5) == curved
    penalty().backward()
    gradients = {name: weight.grad for name, weight in D.named_parameters()}
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())
    ways = [gradient.abs().max() for name, gradient in gradients.items() if "weight" in name and gradient is not None]
    assert len(ways) > 10 and all(way > 0 for way in ways)


def test_r1_stays_finite_where_all_images_are_equal():
    """Their deviation is 0, where a root has no derivative."""
    config = tiny(minibatch_std=True)
    D, (_, text, images) = Discriminator(config), inputs(config)
    images = images[:1].repeat(3, 1, 1, 1).requires_grad_()
    (verdict,) = D(Look(images, text, penalised=True))
    gradient_penalty(verdict.logits, images).mean().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in D.parameters())


@pytest.mark.parametrize("options", [option for option in OF_D if "minibatch_std" not in option], ids=named)
def test_verdicts_do_not_depend_on_the_others(options):
    config = tiny(**options)
    D, (_, text, images) = awake(Discriminator(config)), inputs(config)
    whole, alone = (D(Look(images[:n], text[:n], text[1 : n + 1]))[0] for n in (2, 1))
    torch.testing.assert_close(whole.logits[:1], alone.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.mismatched[:1], alone.mismatched, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, *OF_G], ids=named)
def test_folded_it_is_the_same_function_in_fewer_operations_on_the_same_weights(options):
    config = tiny(**options)
    G, (z, text, _) = awake(Generator(config)).double(), inputs(config, n=5)
    z, text = z.double(), text.double()
    with torch.no_grad():
        for _ in range(3):
            G(z, text)
    expected, counts = G.eval()(z, text).detach(), []
    folded = FoldedGenerator(G)
    assert expected.std() > 0.05
    torch.testing.assert_close(folded(z, text), expected, rtol=1e-12, atol=1e-12)
    for network in (G, folded):
        with torch.no_grad(), Operations() as counted:
            network(z, text)
        counts.append(counted.count)
    assert counts[1] < counts[0]
    own = {weight.data_ptr() for weight in G.parameters()}
    copied = [name for name, weight in folded.named_parameters() if weight.data_ptr() not in own]
    assert copied and all(name.startswith("G.modulation.affines.") for name in copied)
    torch.testing.assert_close(G(z, text), expected)  # as it was


@pytest.mark.parametrize(
    "name", ["g_norm", "g_text_blocks", "attention", "skip_excitation", "residual_scale", "d_projections"]
)
def test_an_option_changes_no_other_weight(name):
    """Two runs from the same seed differ in the option alone, but for those that change shapes, and so draws."""
    options = {name: EVERYTHING[name]}
    for kind in (Generator, Discriminator):
        states = []
        for config in (tiny(d_scales=1), tiny(d_scales=1, **options)):
            torch.manual_seed(4)
            states.append(kind(config).state_dict())
        common = states[0].keys() & states[1].keys()
        assert common >= {name for name in states[0] if ".norm." not in name}
        assert all(torch.equal(states[0][name], states[1][name]) for name in common)


@pytest.mark.parametrize("options", [*NEW, {"g_norm": "instance"}, {"g_norm": "pixel"}, EVERYTHING], ids=named)
def test_a_step_moves_every_weight(shard_folder, options):
    recipe = {"loss": "relativistic", "r2_penalty": 1.0, "r1_interval": 1, "batch_gpu": 4}
    one = lone_trainer(shard_folder, **recipe, **options)
    before = [weight.detach().clone() for network in (one.G, one.D) for weight in network.parameters()]
    stats = [one.step() for _ in range(2)]  # at the first one, attention's gamma is 0 and hides what it multiplies
    assert all(value.isfinite().all() for values in stats for value in values.values())
    after = [*one.G.named_parameters(), *((f"D.{name}", weight) for name, weight in one.D.named_parameters())]
    still = [name for old, (name, weight) in zip(before, after, strict=True) if torch.equal(old, weight)]
    assert all(name.endswith("bias") for name in still), still


def test_half_precision_trains_with_everything(shard_folder):
    one = lone_trainer(shard_folder, "bf16", r2_penalty=1.0, loss="relativistic", **EVERYTHING)
    assert all(value.isfinite().all() for value in one.step().values())


def test_a_run_with_everything_resumes_bitwise_and_draws(shard_folder, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(shard_folder, whole, iters=4, **EVERYTHING)
    train(shard_folder, halves, iters=2, **EVERYTHING)
    train(shard_folder, halves, iters=4, **EVERYTHING)
    assert_equal_runs(whole, halves, 4, but=("iters",))
    trained = load_generator(whole)
    assert trained.config == ModelConfig(
        **{"resolution": 16, "base_ch": 4, "z_dim": 8, "d_scales": 2, **EARLIER, **EVERYTHING}
    )
    images = trained.sample(F.normalize(torch.ones(2, 768), dim=1), [1, 2])
    assert images.shape == (2, 3, 16, 16) and images.float().std() > 1


def test_a_generator_saved_before_these_options_draws_as_ever(tmp_path):
    folder = checkpoint.save(tmp_path / "run", snapshot(5), keep=2)
    text = F.normalize(torch.ones(2, 768), dim=1)
    expected = load_generator(folder).sample(text, [1, 2])
    with safe_open(folder / checkpoint.GENERATOR, framework="pt") as file:
        about = json.loads(file.metadata()["toolkit"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert EVERYTHING.keys() <= about["config"].keys()
    for name in EVERYTHING.keys() - {"g_norm"}:
        del about["config"][name]
    save_file(tensors, tmp_path / "old.safetensors", {"toolkit": json.dumps(about)})
    old = load_generator(tmp_path / "old.safetensors")
    assert old.config == load_generator(folder).config and torch.equal(old.sample(text, [1, 2]), expected)


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"attention": "12"}, "attention is '12'; it must be sides out of 4, 8, 16, 32, 64"),
        ({"attention": "16,128"}, "attention is '16,128'"),
        ({"attention": "8", "resolution": 16}, None),
        ({"attention": "x"}, "attention is 'x'"),
        ({"residual_scale": 0.0}, "residual_scale is 0.0; it must be above 0 and at most 1"),
        ({"residual_scale": float("nan")}, "residual_scale is nan"),
        ({"d_projections": 6}, "d_projections is 6; it must be from 1 to 5 at resolution 128"),
        ({"d_projections": 0}, "d_projections is 0"),
        ({"d_base_ch": -1}, "d_base_ch is -1"),
    ],
)
def test_ranges(arguments, words):
    if words is None:
        assert ModelConfig(**arguments).attention_sides == (8,)
        return
    with pytest.raises(UserError) as refused:
        ModelConfig(**arguments)
    assert words in str(refused.value)


def test_options_read_back_from_a_recorded_config(tmp_path):
    config = ResolvedConfig(resolution=16, **EVERYTHING)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")]).resolved() == config
    flags = ["--attention", "4,8", "--g_text_blocks", "--d_projections", "2"]
    found = parse(TrainConfig, ["--resolution", "16", *flags])
    assert (found.attention_sides, found.g_text_blocks, found.d_projections) == ((4, 8), True, 2)


# Cost


def test_multiply_adds_in_closed_form():
    assert count_operations(nn.Conv2d(3, 5, 3, padding=1), torch.zeros(1, 3, 8, 8)) == 9 * 3 * 5 * 64
    assert count_operations(nn.Linear(7, 11), torch.zeros(1, 7)) == 77
    # 1x1 convolutions to 2, 2 and 8 channels and back from 8; scores and sums of 64 x 64 positions
    expected = 64 * 16 * (2 + 2 + 8 + 8) + 64 * 64 * (2 + 8)
    assert count_operations(SelfAttention(16, nn.Conv2d), torch.zeros(1, 16, 8, 8)) == expected


@pytest.mark.parametrize("options", [{}, {"attention": "8,16", "skip_excitation": True}], ids=["plain", "attention"])
def test_a_dry_run_shows_weights_and_multiply_adds(capsys, options):
    config = ResolvedConfig(dry_run=True, **TRAINING, **dataclasses.asdict(tiny(resolution=32, base_ch=16, **options)))
    main(config)
    lines = capsys.readouterr().out.splitlines()[-2:]
    z, text, images = inputs(config, n=1)
    for line, network, given in (
        (lines[0], Generator(config), (z, text)),
        (lines[1], Discriminator(config), (Look(images, text),)),
    ):
        cost = count_operations(network, *given)
        assert cost == count_operations(copy.deepcopy(network).eval(), *given) > 1e6
        name = type(network).__name__
        assert line == f"# {name}: {count_parameters(network):,} parameters, {cost / 1e9:.3f} GMACs an image"

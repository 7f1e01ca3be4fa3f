"""G for drawing: folded, it is the same function, for any batch and both norms."""

import copy

import pytest
import torch

from benchmarks.operations import Operations
from tests.test_checkpoint import snapshot
from tests.test_models import inputs, tiny
from toolkit.draws import sample_noise
from toolkit.inference.folding import FoldedGenerator
from toolkit.inference.sampling import load_generator, sample
from toolkit.networks.models import Generator
from toolkit.run_folder import checkpoint


def trained(g_norm: str) -> Generator:
    """With statistics, and affines that are not near their start."""
    torch.manual_seed(1)
    config = tiny(g_norm=g_norm)
    G = Generator(config)
    with torch.no_grad():
        for norm in G.norms():
            norm.gamma_beta.weight.normal_(std=0.3)
            norm.gamma_beta.bias.normal_(std=0.3)
        for _ in range(5):
            G(*inputs(config, n=6)[:2])
    return G.eval()


@pytest.mark.parametrize("g_norm", ["batch", "group"])
def test_the_folded_generator_is_the_generator(g_norm):
    G = trained(g_norm).double()
    z, text, _ = (tensor.double() for tensor in inputs(tiny(), n=5))
    expected = G(z, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(FoldedGenerator(copy.deepcopy(G))(z, text), expected, rtol=1e-12, atol=1e-12)
    single = FoldedGenerator(copy.deepcopy(G).float())(z.float(), text.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


def test_it_takes_a_quarter_fewer_operations():
    G, (z, text, _) = trained("batch"), inputs(tiny())
    folded, counts = FoldedGenerator(copy.deepcopy(G)), []
    for network in (G, folded):
        with torch.no_grad(), Operations() as counted:
            network(z, text)
        counts.append(counted.count)
    assert counts[1] < 0.75 * counts[0]


def test_a_checkpoint_draws_what_its_generator_draws(tmp_path):
    checkpoint.save(tmp_path / "run", snapshot(5), keep=2)
    generator = load_generator(tmp_path / "run")
    text = torch.nn.functional.normalize(torch.randn(5, 768, generator=torch.Generator().manual_seed(0)), dim=1)
    plain = sample(generator.network, sample_noise(list(range(5)), generator.config.z_dim), text)
    assert (generator.sample(text, list(range(5))).int() - plain.int()).abs().max() <= 1

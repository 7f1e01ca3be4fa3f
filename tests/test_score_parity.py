"""The same images and the same weights file, scored by torch-fidelity, pytorch-fid and clean-fid, and by us.

`pytest tests/test_score_parity.py -rP` shows the table. Scores of a whole path (files, resize, network, formula) agree
to 1e-3 of their value, formulas on the same features to 1e-6.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evaluation.extractors.inception import load_inception
from evaluation.metrics.frechet import frechet_distance, statistics
from evaluation.metrics.inception_score import inception_score
from evaluation.metrics.kernel_distance import kernel_distance
from evaluation.metrics.neighbours import manifolds
from evaluation.sources.opening import open_source
from tests.inception_files import drawn_images
from toolkit.data.decoding import fit_square
from toolkit.data.images import save_png

CPU = torch.device("cpu")
IMAGES = 8
"""A side. Parity does not depend on it, the time does."""
BATCH = 5
RESIZES = ("pytorch", "legacy")
SUBSETS = {"kid_subsets": 20, "kid_subset_size": 4}


class Sides(NamedTuple):
    """Two folders of images of 64 px, and an Inception file of whose layers `layer` is the last that counts."""

    real: Path
    fake: Path
    weights: Path
    layer: int


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, random_weights) -> Sides:
    """Clouds, and a complete file of random weights."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, seed in (("real", 0), ("fake", 1)):
        (folder / name).mkdir()
        for i, image in enumerate(drawn_images(IMAGES, (64, 64), seed)):
            save_png(image // (1 + seed), folder / name / f"{i:03d}.png")
    return Sides(folder / "real", folder / "fake", random_weights, 2048)


@pytest.fixture
def shallow(drawn) -> Sides:
    """The clouds by an early layer: scipy's root of a singular 2048 x 2048 matrix takes a minute."""
    return drawn._replace(layer=64)


@pytest.fixture(scope="module")
def photos(real_data, partial_weights, tmp_path_factory) -> Sides:
    """Two dishes, and the real weights up to layer 768."""
    folder = tmp_path_factory.mktemp("photos")
    entries = [json.loads(line) for line in (real_data / "data" / "food101-10" / "captions.jsonl").open()]
    for name, some in (("real", entries[:IMAGES]), ("fake", entries[-IMAGES:])):
        (folder / name).mkdir()
        for i, entry in enumerate(some):
            photo = Image.open(real_data / "data" / "food101-10" / entry["file"]).convert("RGB")
            fit_square(photo, 64).save(folder / name / f"{i:03d}.png")
    return Sides(folder / "real", folder / "fake", partial_weights, 768)


@pytest.fixture
def early_photos(photos) -> Sides:
    """By a layer of which scipy's root takes no second."""
    return photos._replace(layer=192)


def features(sides: Sides, resize: str, layers: tuple[str, ...] = ()) -> list[dict[str, Tensor]]:
    """Of the real and of the fake side: by tap [N, C]."""
    extractor = load_inception(layers or (str(sides.layer),), resize, sides.weights, CPU)
    found = []
    for folder in (sides.real, sides.fake):
        parts = [extractor(images) for images in open_source(folder).batches(BATCH)]
        found.append({tap: torch.cat([part[tap] for part in parts]) for tap in extractor.taps})
    return found


def fid_of(real: Tensor, fake: Tensor) -> float:
    return frechet_distance(statistics(real), statistics(fake))


def compare(peer: str, ours: dict[str, float], theirs: dict[str, float], relative: float = 1e-3) -> None:
    for name, value in theirs.items():
        difference = abs(ours[name] - value) / max(abs(value), 1e-12)
        print(f"{peer:14} {name:20} ours {ours[name]:.9g}  theirs {value:.9g}  relative difference {difference:.1e}")
    assert ours == pytest.approx(theirs, rel=relative)


@pytest.mark.parametrize("data", ["photos", "drawn"])
def test_torch_fidelity(data, request):
    """All that it computes of two folders, from the files on; of the partial real weights no Inception Score."""
    from torch_fidelity import calculate_metrics

    sides = request.getfixturevalue(data)
    whole = sides.layer == 2048
    layers = (str(sides.layer), *("logits",) * whole)
    real, fake = features(sides, "legacy", layers)
    x, y = (side[f"inception_{sides.layer}"] for side in (real, fake))
    kid, found = kernel_distance(y, x, SUBSETS["kid_subsets"], SUBSETS["kid_subset_size"]), manifolds(x, y)
    ours = {"fid": fid_of(x, y), "kid": kid.mean, "kid_std": kid.std}
    ours |= {"precision": found.precision, "recall": found.recall}
    theirs = calculate_metrics(
        input1=str(sides.fake), input2=str(sides.real), fid=True, kid=True, prc=True, isc=whole, isc_splits=3,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(sides.weights),
        feature_layer_fid=str(sides.layer), feature_layer_kid=str(sides.layer), feature_layer_prc=str(sides.layer),
        cuda=False, cache=False, verbose=False, save_cpu_ram=True, batch_size=BATCH, **SUBSETS,
    )  # fmt: skip
    names = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    names |= {"kid_std": "kernel_inception_distance_std", "precision": "precision", "recall": "recall"}
    if whole:
        score = inception_score(fake["inception_logits"], splits=3)
        ours |= dict(zip(("inception_score", "inception_score_std"), score, strict=True))
        names |= {"inception_score": "inception_score_mean", "inception_score_std": "inception_score_std"}
    assert min(ours["fid"], ours["kid"]) > 0
    compare(f"torch-fidelity {data}", ours, {name: theirs[key] for name, key in names.items()})


@pytest.mark.parametrize("data", [pytest.param("photos", marks=pytest.mark.slow), "early_photos", "shallow"])
def test_pytorch_fid(data, request, monkeypatch):
    """From the files on: its reading, its resize, its network and its formula."""
    fid_score, network = _pytorch_fid(monkeypatch, sides := request.getfixturevalue(data))
    stats = [
        fid_score.compute_statistics_of_path(str(folder), network, BATCH, sides.layer, "cpu", num_workers=0)
        for folder in (sides.real, sides.fake)
    ]
    theirs = float(fid_score.calculate_frechet_distance(*stats[0], *stats[1]))
    real, fake = (side[f"inception_{sides.layer}"] for side in features(sides, "pytorch"))
    compare(f"pytorch-fid {data}", {"fid": fid_of(real, fake)}, {"fid": theirs})


def test_features_of_the_last_layer_are_pytorch_fids(drawn, monkeypatch):
    fid_score, network = _pytorch_fid(monkeypatch, drawn)
    files = sorted(drawn.real.iterdir())[:2]
    theirs = torch.from_numpy(fid_score.get_activations(files, network, 2, 2048, "cpu", num_workers=0)).float()
    images = next(open_source(drawn.real).batches(2))
    ours, other = (load_inception(("2048",), r, drawn.weights, CPU)(images)["inception_2048"] for r in RESIZES)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert (other - theirs).abs().max() > 1e-3 * theirs.abs().max()  # the resize matters


@pytest.mark.parametrize("data", [pytest.param("photos", marks=pytest.mark.slow), "early_photos", "shallow"])
def test_clean_fid(data, request, monkeypatch):
    """From the files on: its reading and its resize, FID and KID, around pytorch-fid's network."""
    clean = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")
    _, network = _pytorch_fid(monkeypatch, sides := request.getfixturevalue(data))
    network.resize_input = network.normalize_input = False

    def extract(images: Tensor) -> Tensor:
        return network((images - 128) / 128)[0].mean(dim=(2, 3))

    options = {"mode": "clean", "num_workers": 0, "batch_size": BATCH, "device": CPU, "verbose": False}
    folders = str(sides.real), str(sides.fake)
    theirs = {
        "fid": float(clean.compute_fid(*folders, custom_feat_extractor=extract, use_dataparallel=False, **options)),
        "kid": _clean_kid(clean, folders, extract, options),
    }
    real, fake = (side[f"inception_{sides.layer}"] for side in features(sides, "clean"))
    ours = {"fid": fid_of(real, fake), "kid": kernel_distance(real, fake, subsets=1, subset_size=IMAGES).mean}
    compare(f"clean-fid {data}", ours, theirs)


def test_formulas_on_the_same_features(drawn):
    """Real features of Inception's layer 192 and drawn ones, with and without full rank."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(48, 48, generator=generator)
    wide = [torch.randn(200, 48, generator=generator) @ mixing + shift for shift in (0, 1)]
    narrow = [side["inception_192"] for side in features(drawn, "legacy", ("192",))]
    for name, (real, fake) in (("full rank", wide), ("rank-deficient", narrow)):
        stats = [fid_features_to_statistics(side) for side in (fake, real)]
        kid = kid_features_to_metric(fake.double(), real.double(), verbose=False, **SUBSETS)
        score = isc_features_to_metric(fake, splits=4)
        theirs = {
            "fid": fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"],
            "kid": kid["kernel_inception_distance_mean"],
            "kid_std": kid["kernel_inception_distance_std"],
            "inception_score": score["inception_score_mean"],
        }
        found = kernel_distance(fake, real, SUBSETS["kid_subsets"], SUBSETS["kid_subset_size"])
        ours = {"fid": fid_of(real, fake), "kid": found.mean, "kid_std": found.std}
        ours["inception_score"] = inception_score(fake, 4)[0]
        compare(name, ours, theirs, relative=1e-6)


@pytest.mark.parametrize(
    "module", ["cleanfid.fid:frechet_distance", "pytorch_fid.fid_score:calculate_frechet_distance"]
)
def test_frechet_formulas_on_the_same_statistics(module):
    """Full rank: with fewer images than features scipy's root itself is off by more than 1e-6."""
    name, function = module.split(":")
    theirs = getattr(pytest.importorskip(name, reason=f"{name.split('.')[0]} is not installed"), function)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=generator)
    stats = [statistics(torch.randn(500, 64, generator=generator) @ mixing + shift) for shift in (0, 0.3)]
    found = float(theirs(*(part.numpy() for side in stats for part in (side.mean, side.covariance))))
    compare(name, {"fid": frechet_distance(*stats)}, {"fid": found}, relative=1e-6)


def _pytorch_fid(monkeypatch, sides: Sides) -> tuple[object, nn.Module]:
    """Its module and its network up to the layer, without its download: the weights are those of `sides`."""
    inception = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    from pytorch_fid import fid_score

    state = torch.load(sides.weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda url, progress: state)
    return fid_score, inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[sides.layer]]).eval()


def _clean_kid(clean, folders: tuple[str, str], extract, options: dict) -> float:
    """Its subsets are all images here, so chance has no part in it but the order of summation."""
    real, fake = (clean.get_folder_features(folder, extract, **options) for folder in folders)
    return clean.kernel_distance(real.astype(np.float64), fake.astype(np.float64), num_subsets=1)

"""Prompts to images: seeds, names, sidecars, determinism, refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_checkpoint import snapshot
from toolkit import generate
from toolkit.errors import UserError
from toolkit.generate import GenerateOptions, clean_prompt, parse_seeds, slug
from toolkit.inference.sampling import load_generator
from toolkit.run_folder import checkpoint


@pytest.fixture
def run(tmp_path):
    checkpoint.save(tmp_path / "run", snapshot(5), keep=2)
    return tmp_path / "run"


def test_seeds():
    assert parse_seeds("0,3,8-11") == [0, 3, 8, 9, 10, 11] and parse_seeds(" 5 ") == [5]
    for bad in ("", "a", "3-1", "1,,2", "-1", "0-99999999"):
        with pytest.raises(UserError, match="seeds is"):
            parse_seeds(bad)


def test_names_are_short_ascii_and_stay_in_the_folder():
    assert slug("traditional Serbian ćevapi & onions!") == "traditional-serbian-cevapi-onions"
    assert slug("../../etc/passwd") == "etc-passwd" and slug("Đuveč") == "djuvec" and slug("пљескавица") == "prompt"
    assert len(slug("a b " * 200)) <= 60


def test_prompts_are_cleaned_or_refused():
    assert clean_prompt("  ćevapi ", "x") == "ćevapi"
    for bad in ("", "   ", "a\x00b", "a\x1b[31m", "x" * 5000):
        with pytest.raises(UserError, match="^here: "):
            clean_prompt(bad, "here")


def test_images_do_not_depend_on_the_batch(run):
    trained = load_generator(run)
    text = torch.nn.functional.normalize(torch.randn(9, 768, generator=torch.Generator().manual_seed(0)), dim=1)
    seeds = list(range(9))
    together = trained.sample(text, seeds, batch=9)
    for batch in (1, 4):
        difference = (trained.sample(text, seeds, batch).int() - together.int()).abs().max()
        assert difference <= 1  # a rounding step of uint8
    assert torch.equal(trained.sample(text[3:4], [3]), trained.sample(text[3:4], [3]))
    assert not torch.equal(together[0], trained.sample(text[:1], [99])[0])


def start_features(trained, text: torch.Tensor, psi: float) -> torch.Tensor:
    """What G's first layer makes of 8 seeds, as it comes by while images are drawn."""
    seen, start = [], trained.network.start.weight

    def look(layer, inputs, output) -> None:
        if getattr(layer, "weight", None) is not None and layer.weight.data_ptr() == start.data_ptr():
            seen.append(output)

    hook = torch.nn.modules.module.register_module_forward_hook(look)  # whichever copy of G draws shares its weights
    trained.sample(text.expand(8, -1), list(range(8)), truncation=psi)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("psi", [0.0, 0.3, 0.7, 1.5])
def test_truncation_pulls_the_start_features_towards_the_prompts_mean(run, psi):
    """w' = mean + psi (w - mean); the mean over z is what z = 0 gives, for the layer is linear in z."""
    trained = load_generator(run)
    for text in torch.nn.functional.normalize(torch.randn(3, 768, generator=torch.Generator().manual_seed(0)), dim=1):
        mean, w = start_features(trained, text[None], 0.0), start_features(trained, text[None], 1.0)
        z = torch.randn(50_000, trained.config.z_dim, generator=torch.Generator().manual_seed(1))
        features = trained.network.text(text[None] * 768**0.5).expand(len(z), -1)
        drawn = trained.network.start(torch.cat([z, features], dim=1))
        assert ((drawn.mean(dim=0) - mean[0]).abs() < 5 * drawn.std(dim=0) / len(z) ** 0.5).all()
        assert (w - mean).abs().mean() > 0.01  # far above the tolerance below
        torch.testing.assert_close(start_features(trained, text[None], psi), mean + psi * (w - mean))


def test_diversity_within_a_prompt_falls_with_psi_down_to_one_image(run):
    trained, seeds = load_generator(run), list(range(24))
    texts = torch.nn.functional.normalize(torch.randn(4, 768, generator=torch.Generator().manual_seed(0)), dim=1)

    def images(psi: float) -> torch.Tensor:
        return torch.stack([trained.sample(t.expand(24, -1), seeds, truncation=psi) for t in texts]).flatten(2)

    diversity = {psi: torch.stack([torch.pdist(of).mean() for of in images(psi).float()]) for psi in (0, 0.25, 0.5,
                 0.75, 1, 1.5)}  # fmt: skip
    rows = torch.stack(list(diversity.values()))
    assert (rows.diff(dim=0) > 0).all(), rows  # of every prompt
    at_zero = images(0)
    assert (at_zero == at_zero[:, :1]).all() and len({bytes(p.numpy()) for p in at_zero[:, 0]}) == 4
    plain = torch.stack([trained.sample(t.expand(24, -1), seeds) for t in texts]).flatten(2)
    assert torch.equal(images(1.0), plain)


def test_truncation_and_the_average_stand_in_the_sidecar(run, tmp_path):
    def sidecar(out: str, **options) -> dict:
        options = {"checkpoint": str(run), "prompt": "burek", "seeds": "0-1", "out_dir": str(tmp_path / out)} | options
        generate.main(GenerateOptions(**options))
        return json.loads((tmp_path / out / "0000_burek_seed1.json").read_text())

    plain = sidecar("plain")
    assert {"truncation", "average"}.isdisjoint(plain)
    assert sidecar("half", truncation=0.5) == plain | {"truncation": 0.5}
    sidecar("none", truncation=0.0)
    files = {name: [(tmp_path / name / f"0000_burek_seed{k}.png").read_bytes() for k in (0, 1)] for name in
             ("plain", "half", "none")}  # fmt: skip
    assert files["none"][0] == files["none"][1] and files["half"][0] not in (files["plain"][0], files["half"][1])
    checkpoint.copy_generator(run / "ckpt_0000005" / checkpoint.GENERATOR, tmp_path / "average.safetensors")
    assert sidecar("copy", checkpoint=str(tmp_path / "average.safetensors"))["step"] == 5
    for psi in (-0.1, 2.5, float("nan")):
        with pytest.raises(UserError, match="truncation is"):
            GenerateOptions(checkpoint="x", prompt="a", truncation=psi)


def test_a_prompts_file_gives_images_with_sidecars(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\ufeffćevapi\n\nburek with yogurt\n", encoding="utf-8")
    options = GenerateOptions(
        checkpoint=str(run), prompts_file=str(tmp_path / "prompts.txt"), seeds="0,7", out_dir=str(tmp_path / "out")
    )
    generate.main(options)
    assert "4 images of 2 prompts" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["0000_cevapi_seed0.png", "0000_cevapi_seed7.png", "0001_burek-with-yogurt_seed0.png",
                     "0001_burek-with-yogurt_seed7.png", "grid.png"]  # fmt: skip
    sidecar = json.loads((tmp_path / "out" / "0000_cevapi_seed7.json").read_text(encoding="utf-8"))
    assert (sidecar["prompt"], sidecar["seed"], sidecar["step"], sidecar["encoder"]) == ("ćevapi", 7, 5, "hashing")
    again = tmp_path / "again"
    generate.main(GenerateOptions(checkpoint=str(run), prompt=sidecar["prompt"], seeds="7", out_dir=str(again)))
    first, second = (np.array(Image.open(folder / "0000_cevapi_seed7.png")) for folder in (tmp_path / "out", again))
    assert np.abs(first.astype(int) - second.astype(int)).max() <= 1


def test_embedding_files(run, tmp_path):
    vector = np.random.default_rng(0).normal(size=768)
    np.save(tmp_path / "v.npy", vector)
    out = tmp_path / "out"
    generate.main(GenerateOptions(checkpoint=str(run), embedding=str(tmp_path / "v.npy"), seeds="1", out_dir=str(out)))
    expected = load_generator(run).sample(torch.tensor(vector / np.linalg.norm(vector)).float()[None], [1])[0]
    image = np.array(Image.open(out / "0000_v-0_seed1.png")).astype(int)
    assert np.abs(image - expected.permute(1, 2, 0).numpy()).max() <= 1
    bad = {"width": vector[:512], "nan": np.full(768, np.nan), "zero": np.zeros(768), "rank": np.zeros((1, 1, 768))}
    for name, array in bad.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(UserError, match=name):
            generate.main(
                GenerateOptions(checkpoint=str(run), embedding=str(tmp_path / f"{name}.npy"), out_dir=str(out))
            )
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))  # never unpickled when read
    with pytest.raises(UserError, match="cannot be read"):
        generate.main(GenerateOptions(checkpoint=str(run), embedding=str(tmp_path / "object.npy"), out_dir=str(out)))


def test_interactive(run, tmp_path, monkeypatch):
    lines = iter(["burek", "bad\x07prompt", "gibanica", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    generate.main(GenerateOptions(checkpoint=str(run), interactive=True, seeds="0", out_dir=str(tmp_path / "out")))
    names = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert names == ["0000_burek_seed0.png", "0001_gibanica_seed0.png"]


def test_exactly_one_kind_of_prompt():
    with pytest.raises(UserError, match="exactly one"):
        GenerateOptions(checkpoint="x")
    with pytest.raises(UserError, match="exactly one"):
        GenerateOptions(checkpoint="x", prompt="a", interactive=True)


def test_another_encoder_is_refused_with_the_cosine(run, monkeypatch, tmp_path):
    from toolkit.encoders.hashing_encoder import HashingEncoder

    real = HashingEncoder.encode
    monkeypatch.setattr(HashingEncoder, "encode", lambda self, captions: real(self, captions).roll(1, dims=1))
    with pytest.raises(UserError, match=r"cosine -?0\.\d+"):
        generate.main(GenerateOptions(checkpoint=str(run), prompt="burek", out_dir=str(tmp_path / "out")))

"""Averages of G beside the main one: what they are, how they are stored and resumed, which of them is chosen."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation import choose_average
from evaluation.choose_average import ChooseOptions, choose
from evaluation.scoring import evaluator
from evaluation.scoring.collect import collect
from tests.running import lone_trainer, train
from tests.scored import untrained
from tests.test_evaluator import Means
from toolkit import generate
from toolkit.command_line import dump, parse
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.data.images import save_png
from toolkit.durable import file_sha256
from toolkit.encoders.hashing_encoder import HashingEncoder
from toolkit.encoders.text_encoder import EncoderIdentity
from toolkit.errors import Diverged, UserError
from toolkit.inference.sampling import load_generator
from toolkit.networks.architecture import ModelConfig
from toolkit.run_folder import checkpoint
from toolkit.run_folder.checkpoint import (
    GENERATOR,
    MANIFEST,
    NETWORKS,
    OPTIMIZERS,
    STATE,
    GeneratorFile,
    Snapshot,
    checkpoint_name,
    load_generator_file,
    profile_file,
    profiles_in,
)
from toolkit.run_folder.snapshot import take_snapshot

PROFILES = {"ema_profiles": "0.1,0.02"}
NAMES = ["ema_0.02kimg", "ema_0.1kimg"]


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().clone() for name, value in network.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_names_are_the_half_lives():
    config = parse(TrainConfig, ["--ema_profiles", "80, 5,0.5"])
    assert config.profiles == {"ema_0.5kimg": 0.5, "ema_5kimg": 5.0, "ema_80kimg": 80.0}
    assert (
        parse(TrainConfig, ["--ema_profiles", "5"]).profiles == {"ema_5kimg": 5.0} and ResolvedConfig().profiles == {}
    )
    assert all(checkpoint.PROFILE.fullmatch(profile_file(name))[1] == name for name in config.profiles)
    extremes = ResolvedConfig(ema_profiles="0.001,999999.999").profiles
    assert list(extremes) == ["ema_0.001kimg", "ema_999999.999kimg"]


def test_a_single_half_life_survives_the_config_file(tmp_path):
    (tmp_path / "config.yaml").write_text(dump(ResolvedConfig(ema_profiles="5")))
    assert parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")]).ema_profiles == "5"


def test_each_is_the_average_of_its_own_half_life_in_training(shard_folder):
    """Against sums of G's weights and statistics after each step, in float64."""
    one = lone_trainer(shard_folder, g_norm="batch", lr_g=1e-2, ema_decay=0.5, **PROFILES)
    decays = {"main": 0.5, "ema_0.02kimg": 0.5 ** (8 / 20), "ema_0.1kimg": 0.5 ** (8 / 100)}
    expected = {name: weights(one.G) for name in decays}
    for _ in range(6):
        one.step()
        for name, d in decays.items():
            now = weights(one.G)
            expected[name] = {key: d * expected[name][key] + (1 - d) * now[key] for key in now}
    assert list(one.profiles) == NAMES and [average.updates for average in one.averages] == [6, 6, 6]
    for name, average in {"main": one.ema, **one.profiles}.items():
        found = weights(average.module)
        for key in found:
            torch.testing.assert_close(found[key], expected[name][key], rtol=1e-4, atol=1e-6)
    apart = [(a.module.start.weight - b.module.start.weight).abs().max() for a in one.averages for b in one.averages]
    assert sorted(apart)[3] > 1e-3  # but for each with itself
    one.close()


def test_they_leave_the_training_and_the_main_average_as_they_are(shard_folder, tmp_path):
    train(shard_folder, tmp_path / "without", iters=4)
    train(shard_folder, tmp_path / "with", iters=4, **PROFILES)
    without, beside = (tmp_path / name / checkpoint_name(4) for name in ("without", "with"))
    for name in (GENERATOR, NETWORKS, OPTIMIZERS):
        assert (without / name).read_bytes() == (beside / name).read_bytes()
    five = {GENERATOR, NETWORKS, OPTIMIZERS, STATE, MANIFEST}
    assert {path.name for path in without.iterdir()} == five
    assert {path.name for path in beside.iterdir()} == five | set(map(profile_file, NAMES))


def test_the_checkpoint_holds_each_as_a_generator_of_its_own(shard_folder, tmp_path):
    one = lone_trainer(shard_folder, lr_g=1e-2, **PROFILES)
    for _ in range(3):
        one.step()
    one.close()
    folder = checkpoint.save(tmp_path, take_snapshot(one), keep=2)
    assert list(profiles_in(folder)) == NAMES
    main, listed = load_generator_file(folder / GENERATOR), json.loads((folder / MANIFEST).read_text())["files"]
    text, seeds = torch.nn.functional.normalize(torch.ones(2, 768), dim=1), [1, 2]
    drawn = [load_generator(folder).sample(text, seeds)]
    for name, path in profiles_in(folder).items():
        file = load_generator_file(path)
        assert (file.config, file.identity, file.step, file.average) == (*main[1:4], name)
        assert listed[path.name]["sha256"] == file_sha256(path)
        assert equal(file.tensors, dict(one.profiles[name].module.state_dict()))
        assert equal(checkpoint.load(folder).profiles[name], file.tensors)
        drawn.append(load_generator(path).sample(text, seeds))
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_one_is_named_and_the_checkpoint_passed_over(tmp_path, damage):
    older, newer = (checkpoint.save(tmp_path, stored(step), keep=3) for step in (1, 2))
    path = newer / profile_file("ema_20kimg")
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[-5] ^= 16
        path.write_bytes(data if damage == "flip" else data[:-5])
        with pytest.raises(UserError, match="ema_20kimg.safetensors has changed since it was written"):
            load_generator(path)
    with pytest.raises(UserError, match="ema_20kimg.safetensors"):
        checkpoint.load(newer)
    assert checkpoint.newest_valid(tmp_path)[0] == older
    assert load_generator(newer).step == load_generator(newer / GENERATOR).step == 2  # which is whole


def test_one_that_is_not_in_the_manifest_is_refused_and_a_copy_elsewhere_is_not(tmp_path):
    folder = checkpoint.save(tmp_path, stored(1), keep=2)
    foreign, alone = folder / profile_file("ema_7kimg"), tmp_path / profile_file("ema_7kimg")
    for path in (foreign, alone):
        path.write_bytes((folder / profile_file("ema_5kimg")).read_bytes())
    with pytest.raises(UserError, match=r"ema_7kimg.safetensors is not among the files of its manifest.json"):
        load_generator(foreign)
    assert load_generator(alone).average == "ema_5kimg" and not checkpoint.find_problem(folder)
    (folder / GENERATOR).write_bytes((folder / GENERATOR).read_bytes()[:-1])
    with pytest.raises(UserError, match="generator.safetensors has changed"):
        load_generator(folder / GENERATOR)


def test_one_that_is_not_finite_is_not_saved(tmp_path):
    bad = stored(1)
    bad.profiles["ema_5kimg"]["start.bias"][0] = float("nan")
    with pytest.raises(Diverged, match=r"start\.bias is no longer finite"):
        checkpoint.save(tmp_path, bad, keep=2)


@pytest.mark.parametrize("at", [2, 5])
def test_they_resume_bitwise_before_their_start_and_on_their_ramp(shard_folder, tmp_path, at):
    options = {**PROFILES, "g_norm": "batch", "ema_start": 3, "ema_ramp": True, "ema_rampup": 0.4, "lr_g": 1e-3}
    train(shard_folder, tmp_path / "whole", iters=7, **options)
    for iters in (at, 7):
        train(shard_folder, tmp_path / "parts", iters=iters, **options)
    whole, parts = (tmp_path / name / checkpoint_name(7) for name in ("whole", "parts"))
    files = [GENERATOR, NETWORKS, OPTIMIZERS, *map(profile_file, NAMES)]
    assert [name for name in files if (whole / name).read_bytes() != (parts / name).read_bytes()] == []
    assert len({(whole / name).read_bytes() for name in files}) == len(files)


def test_one_added_starts_from_the_main_average_and_one_removed_is_dropped(shard_folder, tmp_path, capsys):
    train(shard_folder, tmp_path, iters=3, ema_profiles="0.02", ema_decay=0.5)
    one = lone_trainer(shard_folder, ema_profiles="0.1", ema_decay=0.5)
    told = one.resume(tmp_path / checkpoint_name(3))
    assert "average ema_0.1kimg is new and starts from the main average" in told
    assert "average ema_0.02kimg is no longer in ema_profiles and is dropped" in told
    added = one.profiles["ema_0.1kimg"]
    assert equal(weights(added.module), weights(one.ema.module)) and added.updates == one.ema.updates == 3
    one.step(), one.close()
    assert not equal(weights(added.module), weights(one.ema.module))
    capsys.readouterr()
    train(shard_folder, tmp_path, iters=4, ema_profiles="0.1", ema_decay=0.5)
    assert "changed since then: average ema_0.1kimg is new" in capsys.readouterr().err
    saved = checkpoint.load(tmp_path / checkpoint_name(4)).profiles
    assert list(saved) == ["ema_0.1kimg"] and equal(saved["ema_0.1kimg"], dict(added.module.state_dict()))


def test_a_checkpoint_from_before_profiles_existed_goes_on_with_and_without(shard_folder, tmp_path):
    train(shard_folder, tmp_path / "whole", iters=4)
    train(shard_folder, tmp_path, iters=2)
    folder = tmp_path / checkpoint_name(2)
    state, manifest = (json.loads((folder / name).read_text()) for name in (STATE, MANIFEST))
    del state["config"]["ema_profiles"], state["config"]["ema_rampup"]
    (folder / STATE).write_text(json.dumps(state))
    manifest["files"][STATE] = {"bytes": (folder / STATE).stat().st_size, "sha256": file_sha256(folder / STATE)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    one = lone_trainer(shard_folder, **PROFILES)
    told = one.resume(folder)
    assert [line for line in told if "average" in line] == [
        f"average {name} is new and starts from the main average" for name in NAMES
    ]
    assert equal(weights(one.profiles["ema_0.1kimg"].module), weights(one.ema.module))
    train(shard_folder, tmp_path, iters=4)
    names = (GENERATOR, NETWORKS)
    whole, gone_on = (run / checkpoint_name(4) for run in (tmp_path / "whole", tmp_path))
    assert all((whole / name).read_bytes() == (gone_on / name).read_bytes() for name in names)


def test_the_fingerprint_covers_every_average(shard_folder):
    one = lone_trainer(shard_folder, **PROFILES)
    before = one.fingerprint()
    assert before.shape == (5,)
    for place, average in enumerate(one.averages, start=2):
        average.module.start.weight.view(-1)[0] += 1
        after = one.fingerprint()
        assert (after != before).nonzero().flatten().tolist() == [place]
        before = after


# --- choosing one


def stored(step: int) -> Snapshot:
    """Main average, and profiles on the straight line from it to another network (20 kimg) and as far beyond it."""
    config = ModelConfig(resolution=16, base_ch=4, z_dim=8, d_scales=1)
    start = {name: value.contiguous() for name, value in untrained().state_dict().items()}
    torch.manual_seed(7)
    away = {name: 0.3 * value.std() * torch.randn_like(value) for name, value in start.items() if value.ndim > 1}

    def along(share: float) -> dict:
        return {name: value + share * away[name] if name in away else value.clone() for name, value in start.items()}

    profiles = {"ema_5kimg": along(0.5), "ema_20kimg": along(1.0), "ema_80kimg": along(2.0)}
    return Snapshot(GeneratorFile(start, config, EncoderIdentity.of(HashingEncoder()), step), {}, {}, {}, profiles)


@pytest.fixture
def case(tmp_path, random_weights) -> dict:
    """Options: the real images are drawn by the average of 20 kimg, for the same captions with other noise."""
    folder = checkpoint.save(tmp_path / "run", stored(3), keep=2)
    captions = [f"dish number {i}" for i in range(16)]
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    text = HashingEncoder().encode(captions).repeat(4, 1)
    (tmp_path / "real").mkdir()
    images = load_generator(folder / profile_file("ema_20kimg")).sample(text, list(range(5000, 5000 + len(text))))
    for i, image in enumerate(images):
        save_png(image, tmp_path / "real" / f"{i:03d}.png")
    return {"checkpoint": folder.parent, "real": str(tmp_path / "real"), "prompts": str(tmp_path / "prompts.txt"),
            "weights": random_weights, "feature_layer": 64, "device": "cpu", "cache": ""}  # fmt: skip


def test_the_average_that_is_truly_nearest_is_chosen_and_written(case, no_network, tmp_path, capsys):
    arguments = [text for name, value in case.items() for text in (f"--{name}", str(value))]
    arguments += ["--write", "true", "--out", str(tmp_path / "choice.json")]
    choose_average.main(parse(ChooseOptions, arguments))
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads((tmp_path / "choice.json").read_text())
    rows = {row["average"]: row for row in report["averages"]}
    assert (report["metric"], report["best"], list(rows)) == ("fid_64", "ema_20kimg", ["main", "ema_5kimg",
            "ema_20kimg", "ema_80kimg"])  # fmt: skip
    fids = {name: row["scores"]["fid_64"] for name, row in rows.items()}
    assert fids["ema_20kimg"] < fids["ema_5kimg"] < fids["main"]
    assert rows["main"]["against_best"] == "worse beyond the noise by kid_64"
    assert rows["main"]["scores"]["kid_low_64"] > rows["ema_20kimg"]["scores"]["kid_high_64"]
    assert {row["protocol"]["n_real"] for row in rows.values()} == {64} and "another --seed" in report["notes"][0]
    table = err[err.index("average  ") :].splitlines()
    assert [line.split()[0] for line in table[:5]] == ["average", *rows] and table[3].endswith("  best")

    run = case["checkpoint"]
    written, chosen = run / "average.safetensors", run / checkpoint_name(3) / profile_file("ema_20kimg")
    assert Path(report["written"]) == written and written.stat().st_mode == chosen.stat().st_mode
    copy, original = load_generator_file(written), load_generator_file(chosen)
    assert copy[1:] == original[1:] and copy.average == "ema_20kimg" and equal(copy.tensors, original.tensors)
    options = {"prompt": "dish", "seeds": "0", "cache": "", "out_dir": str(tmp_path / "drawn")}
    generate.main(generate.GenerateOptions(checkpoint=str(written), **options))
    sidecar = json.loads((tmp_path / "drawn" / "0000_dish_seed0.json").read_text())
    assert (sidecar["average"], sidecar["step"]) == ("ema_20kimg", 3)


def test_the_score_decides_and_says_what_lies_within_the_noise(case, monkeypatch):
    """An average a thousandth from the best: no interval can tell them apart. The reference is read once."""
    read = []
    monkeypatch.setattr(evaluator, "load_inception", lambda *arguments: Means())
    monkeypatch.setattr(evaluator, "collect", lambda source, *rest: read.append(source.name) or collect(source, *rest))
    snapshot = stored(4)
    near = {name: value * 1.001 if value.ndim > 1 else value.clone()
            for name, value in snapshot.profiles["ema_20kimg"].items()}  # fmt: skip
    snapshot = snapshot._replace(profiles={"ema_20kimg": snapshot.profiles["ema_20kimg"], "ema_19kimg": near})
    checkpoint.save(case["checkpoint"], snapshot, keep=2)
    report = choose(ChooseOptions(**case, metric="kid", truncation=0.9))
    rows = {row["average"]: row for row in report["averages"]}
    assert list(rows) == ["main", "ema_19kimg", "ema_20kimg"] and report["metric"] == "kid_64"
    assert {"fid_64"}.isdisjoint(rows["main"]["scores"]) and report["written"] is None
    verdicts = sorted(row["against_best"] for row in rows.values())
    assert verdicts[:2] == ["best", "within the noise by kid_64"] and report["best"] != "main"
    assert all(row["protocol"]["truncation"] == 0.9 for row in rows.values())
    assert not (case["checkpoint"] / "average.safetensors").exists()
    assert read == [case["real"], *(row["file"] for row in rows.values())]


def test_higher_is_better_where_the_score_says_so():
    reports = [{"scores": {"recall_64": value}} for value in (0.2, None, 0.7, 0.7)]
    scored = [choose_average.Average(str(i), Path("x"), report) for i, report in enumerate(reports)]
    assert choose_average.best_by("recall_64", scored).name == "2"
    assert choose_average.against(scored[0], scored[2], "recall_64") == "no interval tells the noise"
    with pytest.raises(UserError, match="no average has a fid"):
        choose_average.best_by("fid", [scored[0]._replace(report={"scores": {"fid": None}, "notes": ["no fid: why"]})])


def test_an_average_without_an_interval_is_not_judged():
    """KID was refused for it alone: the best one's interval is then compared with nothing."""
    scores = {"kid_64": 0.1, "kid_low_64": 0.09, "kid_high_64": 0.11}, dict.fromkeys(("kid_64", "kid_low_64"))
    best, other = (
        choose_average.Average(name, Path("x"), {"scores": of}) for name, of in zip("ab", scores, strict=True)
    )
    assert choose_average.against(other, best, "kid_64") == "no interval tells the noise"


def test_what_cannot_be_chosen_from_is_said(case, tmp_path):
    checkpoint.save(case["checkpoint"], stored(9)._replace(profiles={}), keep=3)
    with pytest.raises(UserError, match="ckpt_0000009 holds the main average alone; train with --ema_profiles"):
        choose(ChooseOptions(**case))
    with pytest.raises(UserError, match="no checkpoint at"):
        choose(ChooseOptions(**case | {"checkpoint": tmp_path / "nowhere"}))
    for metric, message in {"fdi": "did you mean 'fid'", "kid_std": "metric is 'kid_std'"}.items():
        with pytest.raises(UserError, match=message):
            ChooseOptions(**case, metric=metric)


def test_a_copy_that_cannot_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    folder, target = checkpoint.save(tmp_path, stored(1), keep=2), tmp_path / "average.safetensors"
    checkpoint.copy_generator(folder / GENERATOR, target)
    before = target.read_bytes()
    assert load_generator_file(target).average == "main" and b'\\"average\\"' in before

    def full(*arguments):
        arguments[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.copy_generator(folder / profile_file("ema_5kimg"), target)
    assert target.read_bytes() == before and not list(tmp_path.glob(".average*"))


def test_the_options_are_those_of_the_evaluation():
    options = ChooseOptions(checkpoint=Path("run"), metric="recall", count=70, seed=3, real="x", allow_few=True)
    handed = choose_average.evaluation_options(options, [Path("a"), Path("b")])
    assert (handed.metrics, handed.fake, handed.count, handed.seed) == ("precision_recall,kid", ["a", "b"], 70, 3)
    assert choose_average.evaluation_options(replace(options, metric="clip_score"), [Path("a")]).metrics == "clip_score"

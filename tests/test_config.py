"""Options: defaults, YAML, flags over YAML, ranges, and errors in one line with the nearest name."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from evaluation.toy_agreement import AgreementOptions
from tests.conftest import REPOSITORY
from toolkit.command_line import dump, parse
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.errors import UserError


def config_file(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_the_file_wherever_they_stand(tmp_path):
    path = config_file(tmp_path, "batch: 16\nlr_g: 5e-5\nbase_ch: 8\n")
    config = parse(TrainConfig, ["--batch", "4", "--config", path])
    assert (config.batch, config.base_ch, config.lr_g) == (4, 8, 5e-5)


def test_switches_need_no_value():
    assert parse(TrainConfig, ["--dry_run", "--batch", "4"]).dry_run and parse(TrainConfig, ["--ema_ramp"]).ema_ramp
    assert not parse(TrainConfig, ["--ema_ramp", "false"]).ema_ramp and parse(TrainConfig, ["--ema_ramp=true"]).ema_ramp


@pytest.mark.parametrize("flags", [["--pictures", "64"], ["--pictures=64"], ["--images", "64"]])
def test_a_renamed_flag_keeps_its_former_name(flags):
    assert parse(AgreementOptions, ["--checkpoint", "run", *flags]).images == 64


def test_recorded_config_reads_back_equal(tmp_path):
    config = parse(
        TrainConfig, ["--data", "x", "--lr_g", "3e-5", "--kimg", "7", "--diffaug", "", "--mixed_precision", "bf16"]
    )
    assert parse(TrainConfig, ["--config", config_file(tmp_path, dump(config))]) == config


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--bas_ch", "3"], "unknown option 'bas_ch'; did you mean 'base_ch'?"),
        (["--base_ch", "many"], "base_ch"),
        (["--loss", "hing"], "loss"),
        (["--resolution", "100"], "resolution is 100; it must be 16, 32, 64, 128 or 256"),
        (["--batch", "0"], "batch is 0"),
        (["--lr_g", "-1"], "lr_g is -1.0"),
        (["--lr_g", ".nan"], "lr_g is nan"),
        (["--r1_penalty", ".inf"], "r1_penalty is inf"),
        (["--ema_decay", "1"], "ema_decay is 1.0"),
        (["--ema_rampup", "1.5"], "ema_rampup is 1.5"),
        (["--ema_profiles", "5,x"], "ema_profiles is '5,x'"),
        (["--ema_profiles", "5,5.0"], "ema_profiles is '5,5.0'"),
        (["--ema_profiles", "0"], "ema_profiles is '0'"),
        (["--ema_profiles", "1e9"], "ema_profiles is '1e9'"),
        (["--keep", "1"], "keep is 1"),
        (["--d_steps", "9"], "d_steps is 9"),
        (["--diffaug", "colour"], "diffaug is 'colour'"),
        (["--d_scales", "6"], "d_scales is 6; it must be from 1 to 5"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["stray"], "stray"),
    ],
)
def test_bad_flags_are_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        parse(TrainConfig, arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text,words",
    [
        ("learning_rate_g: 1\n", "unknown option 'learning_rate_g'"),
        ("iter: 5\n", "did you mean 'iters'?"),
        ("batch: 4\nbatch: 8\n", "the key 'batch' stands twice"),
        ("- batch\n", "must hold 'name: value' lines, found list"),
        ("", "must hold 'name: value' lines"),
        ("batch: [4\n", "cannot be read"),
        ("batch: four\n", "batch"),
        ("batch: -4\n", "batch is -4"),
        ("a: &a [1]\nb: *a\n", "aliases are not accepted"),
        ("batch: !!python/object/apply:os.system [echo]\n", "cannot be read"),
    ],
)
def test_bad_files_are_one_line_naming_the_file(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        parse(TrainConfig, ["--config", config_file(tmp_path, text)])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_non_utf8_and_huge_files(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"data: \xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read"):
        parse(TrainConfig, ["--config", str(path)])
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(UserError, match="larger than 1 MB"):
        parse(TrainConfig, ["--config", str(path)])


def test_shares_of_the_global_batch():
    config = ResolvedConfig(batch=24, batch_gpu=4)
    assert config.per_process(1) == (24, 6) and config.per_process(2) == (12, 3)
    assert ResolvedConfig(batch=24).per_process(3) == (8, 1)
    assert ResolvedConfig(batch=24, batch_gpu=100).per_process(2) == (12, 1)
    with pytest.raises(UserError, match="batch 24 is not divisible by 5 processes"):
        config.per_process(5)
    with pytest.raises(UserError, match="does not split evenly"):
        ResolvedConfig(batch=7, batch_gpu=4).per_process(1)


def test_what_runs_has_numbers_and_reads_back_equal(tmp_path):
    options = TrainConfig(batch="auto", r1_penalty="auto", r2_penalty=2.0, resolution=64)
    config = options.resolved()
    assert options.tries_batch_gpu and not TrainConfig(batch_gpu=4).tries_batch_gpu
    assert (config.batch, config.batch_gpu, config.r2_penalty) == (32, None, 2.0)
    assert config.r1_penalty == pytest.approx(0.0002 * 64**2 / 32)
    assert parse(TrainConfig, ["--config", config_file(tmp_path, dump(config))]).resolved() == config
    assert config.resolved() == config


def test_every_option_stands_in_one_section():
    names = [field.name for section in TrainConfig.SECTIONS for field in dataclasses.fields(section)]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(TrainConfig))


def test_length_in_images_replaces_steps():
    assert ResolvedConfig(kimg=10, batch=50, d_steps=1, iters=3).total_steps == 200
    assert ResolvedConfig(kimg=10, batch=50, d_steps=2).total_steps == 100


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_published_configs_parse(path):
    parse(TrainConfig, ["--config", str(path)])


def test_seed_config_is_the_original_run():
    config = parse(TrainConfig, ["--config", str(REPOSITORY / "configs" / "seed.yaml")])
    assert (config.batch, config.base_ch, config.cond_dim, config.resolution) == (4, 32, 768, 128)
    assert (config.lr_g, config.lr_d, config.r1_penalty, config.grad_clip, config.iters) == (
        5e-5,
        1.5e-4,
        2,
        1.0,
        100_000,
    )
    assert (config.r1_interval, config.ema_decay, config.loss) == (1, 0.999, "hinge")


def test_every_option_has_help_and_the_original_names_exist():
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    original = {
        "batch",
        "base_ch",
        "cond_dim",
        "lr_g",
        "lr_d",
        "r1_penalty",
        "grad_clip",
        "iters",
        "resume_from",
        "out_dir",
    }
    assert original <= names
    lines = [line for section in TrainConfig.SECTIONS for line in inspect.getsource(section).splitlines()]
    for name in names:
        line = next(i for i, text in enumerate(lines) if text.startswith(f"    {name}:"))
        assert lines[line + 1].strip().startswith('"""'), f"{name} has no help text"

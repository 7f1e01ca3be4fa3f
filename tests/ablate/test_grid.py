"""What a grid says: options, evaluations, definitions, and what is refused."""

import json
from dataclasses import fields, replace
from functools import partialmethod
from pathlib import Path

import pytest

from benchmarks.ablate.grid import Grid, fingerprint, read_grid
from benchmarks.ablate.reference import REFERENCE
from benchmarks.ablate.results import read, start
from evaluation.compare.runs import NEUTRAL
from tests.ablate.made import write_grid
from tests.conftest import REPOSITORY
from toolkit.config import ResolvedConfig, TrainConfig
from toolkit.errors import UserError


def test_options_become_what_the_training_takes(grid):
    """1e-3 is a number, '' stays empty, "no" stays a word; what the grid decides is the same for all."""
    large, faster = (grid.config(name, seed=1, folder=Path("run")) for name in ("large", "faster"))
    assert (faster.lr_g, large.diffaug, large.compile) == (1e-3, "", "no")
    assert (large.resolution, large.seed, large.score, large.out_dir) == (16, 1, "none", "run")
    assert large.workers == 0 and replace(grid, on_gpu=True).config("large").workers == "auto"


def test_evaluations_come_after_equal_numbers_of_images(grid):
    for name in grid.variants:
        config = grid.config(name)
        steps = [config.eval_every * i for i in (1, 2)]
        assert [step * config.batch * config.d_steps for step in steps] == [64, 128]
        assert steps[-1] == config.total_steps


def test_a_variant_may_stand_on_a_config_of_its_own(place):
    (place / "own.yaml").write_text("base_ch: 8\nresolution: 64\nlr_d: 5.0e-4\nbatch: 16\nd_steps: 1\niters: 7\n")
    grid = read_grid(write_grid(place, "  base: {}", "  base: {}\n  own: {config: own.yaml, lr_g: 2e-4}"))
    own = grid.config("own")
    assert (own.base_ch, own.resolution, own.lr_d, own.lr_g, own.z_dim) == (8, 16, 5e-4, 2e-4, 128)
    assert own.total_steps == 8


def test_a_base_may_name_a_config_file_and_the_results_say_what_it_was(place, grid):
    (place / "winner.yaml").write_text("base_ch: 2\nlr_d: 5.0e-4\nbeta2: 0.5\n")
    text = (place / "grid.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("base:"))
    named = read_grid(write_grid(place, line, line.replace("{", "{config: winner.yaml, ", 1)))
    assert (named.config("faster").beta2, named.config("faster").lr_g) == (0.5, 1e-3)
    for one in (grid, named):
        options = start(one, place / "results").grid["options"]
        assert options.keys() == one.variants.keys()
        assert options["faster"] == one.definition("faster")["options"] and options["faster"]["lr_g"] == 1e-3
    assert options["base"]["beta2"] == 0.5 and "config" not in options["base"]


def test_the_same_training_has_the_same_fingerprint(place, grid):
    """Neither seed nor places nor other variants matter; what is trained, shown and measured does."""
    same = read_grid(write_grid(place, "faster: {lr_g: 1e-3}", "faster: {lr_g: 0.001}\n  more: {lr_g: 2e-3}"))
    assert fingerprint(same.definition("faster")) == fingerprint(grid.definition("faster"))
    others = [grid.definition("base"), grid.definition("large")]
    others.append(replace(grid, kimg=0.256).definition("faster"))
    others.append(replace(grid, evaluate=replace(grid.evaluate, count=70)).definition("faster"))
    others.append(replace(grid, data=str(place / "test")).definition("faster"))
    assert len({fingerprint(one) for one in [grid.definition("faster"), *others]}) == 6


def test_a_definition_outlives_changed_defaults(grid, monkeypatch):
    """A training with another default is another one, and one that spells the earlier value out is the same."""
    before = grid.definition("faster")
    changed = replace(grid.config("faster"), diffaug="cutout", beta2=0.5)
    monkeypatch.setattr(TrainConfig, "__init__", partialmethod(TrainConfig.__init__, diffaug="cutout", beta2=0.5))
    assert TrainConfig().diffaug == "cutout"
    monkeypatch.setattr(Grid, "config", lambda *_: changed)
    after = grid.definition("faster")
    assert after["options"] == before["options"] | {"diffaug": "cutout", "beta2": 0.5}


def test_every_option_that_counts_has_a_reference():
    """Of a new one: the value that changes nothing."""
    assert REFERENCE.keys() == {field.name for field in fields(ResolvedConfig)} - set(NEUTRAL)
    ResolvedConfig(**REFERENCE)


@pytest.mark.parametrize("name", ["food32_winner", "food32_defaults"])
def test_committed_results_are_of_the_grids_beside_them(name, place):
    """Their options, as recorded, are those that the grid gives today."""
    text = (REPOSITORY / "benchmarks" / "grids" / f"{name}.yaml").read_text(encoding="utf-8")
    text = text.replace("food32_train", "shards").replace("food32_test", "test").replace("count: 500", "count: 64")
    (place / f"{name}.yaml").write_text(text.replace(", weights: inception.pth", ""), encoding="utf-8")
    grid, results = read_grid(place / f"{name}.yaml"), read(REPOSITORY / "benchmarks/results/ablate" / f"{name}.json")
    assert len(results.runs) > 5
    for run in results.runs:
        assert run["options"] == grid.definition(run["variant"])["options"] | {"resolution": 32}


def test_the_grid_for_ones_own_images_needs_nothing_but_shards(place):
    text = (REPOSITORY / "benchmarks" / "grids" / "yours.yaml").read_text(encoding="utf-8")
    (place / "yours.yaml").write_text(text.replace("data: data/shards", "data: shards"), encoding="utf-8")
    grid = read_grid(place / "yours.yaml")
    assert grid.evaluate.weights is None and len(grid.variants) == 5 and grid.config("adaptive").adaptive_augment


def test_a_file_lies_beside_the_grid_and_counts_by_what_it_holds(place):
    line = "frozen_backbone: timm/test_vit, frozen_weights: "
    found = []
    for name, content in (("one.pth", b"1"), ("same.pth", b"1"), ("other.pth", b"2")):
        (place / name).write_bytes(content)
        grid = read_grid(write_grid(place, "lr_g: 1e-3", line + name))
        assert grid.config("faster").frozen_weights == str(place / name)
        found.append(grid.definition("faster"))
    assert found[0] == found[1] != found[2] and str(place) not in json.dumps(found)


@pytest.mark.parametrize("old, new, message", [
    ("lr_g: 1e-3", "lr_gg: 1e-3", "variant faster: unknown option 'lr_gg'; did you mean 'lr_g'"),
    ("lr_g: 1e-3", "lr_g: quick", "variant faster: lr_g"),
    ("lr_g: 1e-3", "lr_g: [1, 2]", "variant faster: lr_g is .* one value"),
    ("lr_g: 1e-3", "lr_g: 7", "variant faster: lr_g is 7.0; it must be above 0"),
    ("lr_g: 1e-3", "kimg: 3", "variant faster: kimg is decided by the grid"),
    ("lr_g: 1e-3", "config: none.yaml", "variant faster: no config file none.yaml"),
    ("lr_g: 1e-3", "frozen_weights: none.pth", "variant faster: no frozen_weights file none.pth"),
    ("lr_g: 1e-3", "adaptive_d_steps: true", "variant faster: adaptive_d_steps shows"),
    ("lr_g: 1e-3", "", "variants base and faster are the same training"),
    ("kimg: 0.128", "kimg: 0.1", r"variant base shows 8 images .* 100 images .* kimg: 0.128 suits"),
    ("kimg: 0.128", "kimg: long", "kimg is 'long'; it must be a number"),
    ("kimg: 0.128\n", "", "the grid lacks kimg"),
    ("kimg: 0.128\n", "kimg: 1\nkimg: 2\n", "the key 'kimg' stands twice"),
    ("seeds: [0, 1]", "seeds: [1, 1]", "seeds is .* different numbers"),
    ("seeds: [0, 1]", "sseeds: [1, 1]", "the grid knows no 'sseeds'; did you mean 'seeds'"),
    ("count: 64", "count: 63", "needs at least 64 images"),
    ("count: 64", "count: 64, weights: none.pth", "no Inception weights at none.pth"),
    ("fid,kid", "fid,kidd", "unknown metric 'kidd'; did you mean 'kid'"),
    ("control: base", "control: bse", "control is 'bse'; it must be one of"),
    ("control: base", "criterion: recall", "criterion is 'recall', which the metrics fid,kid do not give"),
    ("data: shards", "data: shards\ntest: none", "none"),
    ("  base: {}", "  ../base: {}", "a variant's name is '../base'"),
])  # fmt: skip
def test_a_wrong_grid_is_refused_in_one_line(place, old, new, message):
    with pytest.raises(UserError, match=message) as refused:
        read_grid(write_grid(place, old, new))
    assert str(refused.value).startswith(f"{place / 'grid.yaml'}: ") and "\n" not in str(refused.value)

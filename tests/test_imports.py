"""The structure, held by tests: one-way dependencies, no shadowed names, Accelerate in its place."""

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("toolkit", "shards", "evaluation")
LEVELS = [  # a file imports from lower levels only, never from its own
    {"errors", "durable", "losses", "diffaug", "ema", "draws", "stopping", "phase", "probe", "compiling", "norms"},
    {"spectral_norm", "weights_file", "adaptive", "signs", "swd", "processes", "heartbeat", "lock", "loader_workers"},
    {
        "layers",
        "matching",
        "packaged_backbone",
        "norm_folding",
        "attention",
        "text_tower",
        "npy",
        "worker_count",
        "monitor",
        "addresses",
        "tar_index",
    },
    {
        "architecture",
        "penalty",
        "conditioning",
        "score_options",
        "loading_options",
        "loss_options",
        "optimizer_options",
        "augment_options",
        "average_options",
        "record_options",
        "compute_options",
    },
    {"sidecar", "command_line", "config", "decoding", "devices", "images", "hashing_encoder", "open_clip_encoder"},
    {"backbones"},
    {"earlier", "perceptual", "text_encoder", "frozen_features", "evaluations", "scale_discriminator"},
    {"models", "clip_guidance"},
    {"shard_format", "folding", "cost"},
    {"shard_reader", "checkpoint", "fetching", "shard_cache"},
    {"pairs", "match_gate", "standing"},
    {"dataset", "remote_shards", "captioned_grid", "snapshot", "records", "launch", "memory", "best", "trackers"},
    {"feature_cache", "sampling", "resident", "panels"},
    {"prompts", "feed", "objective"},
    {"sample_grid", "trainer", "plots", "checkup"},
    {"score", "micro_batch", "pace"},
    {"reports"},
    {"run", "start"},
    {"train", "generate"},
    {"doctor"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
DISTRIBUTED_MAY = {"launch", "trainer", "processes", "trackers"}
"""Files that import accelerate or torch.distributed; everything else receives objects."""


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imports(path: Path) -> list[str]:
    """Dotted names of all imports of a file, those inside functions too; 'from a import b' gives 'a.b'."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports fail when the file is launched by path"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_toolkit_files_import_downwards_only():
    for path in sorted((REPOSITORY / "toolkit").rglob("*.py")):
        if path.stem == "__init__":
            continue
        assert path.stem in LEVEL, f"give {path.relative_to(REPOSITORY)} a level"
        for name in imports(path):
            for used in set(name.split(".")) & LEVEL.keys() if name.startswith("toolkit.") else ():
                assert LEVEL[used] < LEVEL[path.stem], f"{path.relative_to(REPOSITORY)} imports {name}"


def test_packages_depend_one_way():
    allowed = {"toolkit": {"toolkit"}, "shards": {"toolkit", "shards"}, "evaluation": set(PACKAGES)}
    for path in sources():
        package = path.relative_to(REPOSITORY).parts[0]
        used = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
        if path.relative_to(REPOSITORY).as_posix() == "toolkit/train.py":
            used -= {"evaluation"}  # the command may evaluate as it trains; only the doctor imports it
        assert used <= allowed[package], f"{path} imports {used - allowed[package]}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_shadows_the_standard_library(path):
    """Launched by path, a file's folder comes first in sys.path: toolkit/logging.py would replace the stdlib's."""
    third_party = {
        "accelerate",
        "torch",
        "webdataset",
        "wandb",
        "open_clip",
        "clip",
        "datasets",
        "evaluate",
        "safetensors",
    }
    if path.stem not in ("__init__", "__main__"):
        assert path.stem not in sys.stdlib_module_names | third_party
    for folder in path.parents:
        if (folder / "__init__.py").exists() and folder.name not in PACKAGES:
            assert folder.name not in sys.stdlib_module_names


def test_accelerate_and_process_groups_stay_in_their_files():
    for path in sources():
        for name in imports(path):
            if name.startswith(("accelerate", "torch.distributed")):
                assert path.stem in DISTRIBUTED_MAY, f"{path} imports {name}"


def test_no_pickle():
    for path in sources():
        assert not any(name.split(".")[0] in ("pickle", "dill", "joblib") for name in imports(path)), path
        source = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in source and "allow_pickle=True" not in source, path

"""The whole state of a Trainer as tensors and JSON, and back. Everything needed to resume is named here."""

import dataclasses

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.networks.backbones import FrozenBackbone
from toolkit.run_folder.checkpoint import GeneratorFile, Snapshot
from toolkit.training.penalty import with_weights


def take_snapshot(trainer) -> Snapshot:
    """CPU copies of everything a run needs to go on as if never stopped. Random draws need no state: see draws.py."""
    generator = GeneratorFile(
        _to_cpu(trainer.ema.module.state_dict()),
        trainer.config.architecture(),
        trainer.shards.manifest.encoder,
        trainer.step_number,
        trainer.guided,
    )
    networks = {
        f"{name}.{key}": value
        for name, phase in trainer.phases.items()
        for key, value in _to_cpu(trainer.unwrap(phase.network).state_dict()).items()
    }
    optimizers = {
        f"{name}.{index}.{key}": value.detach().cpu().contiguous()
        for name, phase in trainer.phases.items()
        for index, moments in phase.optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }
    scaler = trainer.accelerator.scaler
    state = {
        "step": trainer.step_number,
        "position": trainer.position,
        "ema_updates": trainer.ema.updates,
        "attempt": trainer.attempt,
        "rollbacks": trainer.rollbacks,
        "left_out": trainer.left_out,
        "for_g": trainer.for_g,
        "adaptive": trainer.adaptive.state(),
        "match_gate": trainer.gate.state(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "data_fingerprint": trainer.shards.manifest.fingerprint,
        "wandb_run_id": trainer.wandb_run_id,
        "config": dataclasses.asdict(trainer.config),
    }
    state |= {"frozen_sha256": _backbone(trainer).sha256} if trainer.config.frozen_backbone else {}
    profiles = {name: _to_cpu(average.module.state_dict()) for name, average in trainer.profiles.items()}
    return Snapshot(generator, networks, optimizers, state, profiles)


RATES = ("lr_g", "lr_d", "r1_penalty", "r2_penalty", "grad_clip", "rollback_lr", "rollback_r1")
"""Who changes one of these has taken the cure of a divergence into his own hands: rollbacks count anew."""
LATER = ("attempt", "rollbacks", "left_out", "for_g")
"""Counters that earlier checkpoints do not have."""
PLACES = ("data", "out_dir", "resume_from", "dry_run")
"""Options that say where things are, not what is trained."""


def restore_snapshot(trainer, snapshot: Snapshot) -> list[str]:
    """Put a snapshot into a Trainer. Returns what has changed since: options, 'name old -> new', and averages that
    begin or are dropped.

    Raises UserError if architecture, data or encoder differ, or if it does not hold what `take_snapshot` put there.
    """
    try:
        _check_counts(snapshot.state)
        _refuse_other(trainer, snapshot)
        return _restore(trainer, snapshot)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):  # out of memory
            raise
        what = str(error).partition("\n")[0][:200]
        raise UserError(
            f"the checkpoint holds something else than this toolkit saves ({type(error).__name__}: {what}); resume "
            "from another one"
        ) from error


def _restore(trainer, snapshot: Snapshot) -> list[str]:
    trainer.ema.module.load_state_dict(snapshot.generator.tensors)
    trainer.ema.updates = snapshot.state["ema_updates"]
    for name, average in trainer.profiles.items():
        average.module.load_state_dict(snapshot.profiles.get(name, snapshot.generator.tensors))
        average.updates = trainer.ema.updates
    for name, phase in trainer.phases.items():
        trainer.unwrap(phase.network).load_state_dict(_below(snapshot.networks, name))
        _restore_optimizer(phase.optimizer, _below(snapshot.optimizers, name))
    trainer.step_number = snapshot.state["step"]
    trainer.position = snapshot.state["position"]
    trainer.guided = trainer.config.clip_guidance > 0 or snapshot.generator.guided
    before, now = with_weights(snapshot.state["config"]), dataclasses.asdict(trainer.config)
    changed = [name for name in now if name in before and before[name] != now[name] and name not in PLACES]
    for name in LATER:
        setattr(trainer, name, snapshot.state.get(name, 0))
    trainer.rollbacks = 0 if set(changed) & set(RATES) else trainer.rollbacks
    if "adaptive" in snapshot.state:
        trainer.adaptive.restore(snapshot.state["adaptive"], trainer.device, "d_steps" in changed)
    if "match_gate" in snapshot.state:
        trainer.gate.restore(snapshot.state["match_gate"])
    trainer.wandb_run_id = snapshot.state["wandb_run_id"]
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(snapshot.state["scaler"] or trainer.first_scale)
    return [f"{name} {before[name]} -> {now[name]}" for name in changed] + _other_profiles(trainer, snapshot)


def _other_profiles(trainer, snapshot: Snapshot) -> list[str]:
    added = [name for name in trainer.profiles if name not in snapshot.profiles]
    dropped = [name for name in snapshot.profiles if name not in trainer.profiles]
    return [f"average {name} is new and starts from the main average" for name in added] + [
        f"average {name} is no longer in ema_profiles and is dropped" for name in dropped
    ]


def _check_counts(state: dict) -> None:
    for name in ("step", "position", "ema_updates", *LATER):
        count = state.get(name, 0) if name in LATER else state[name]
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{name} is {count!r}")


def _refuse_other(trainer, snapshot: Snapshot) -> None:
    mine, theirs = (dataclasses.asdict(config) for config in (trainer.config.architecture(), snapshot.generator.config))
    different = [f"{name} {theirs[name]} -> {mine[name]}" for name in mine if mine[name] != theirs[name]]
    if different:
        raise UserError(
            f"the checkpoint has another architecture ({'; '.join(different)}); resume with its own values (--config "
            "config.yaml of its run) or start anew in another --out_dir"
        )
    if trainer.config.frozen_backbone and _backbone(trainer).sha256 != (sha256 := snapshot.state["frozen_sha256"]):
        raise UserError(
            f"the checkpoint's D was trained on other weights of {trainer.config.frozen_backbone} (SHA-256 "
            f"{sha256[:12]}, here {_backbone(trainer).sha256[:12]}); give those with --frozen_weights"
        )
    manifest = trainer.shards.manifest
    if encoder := snapshot.generator.identity.difference(manifest.encoder):
        raise UserError(f"the checkpoint was trained on embeddings of another encoder: {encoder}")
    if snapshot.state["data_fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"the shards in {trainer.config.data} are not those the checkpoint was trained on "
            f"(fingerprint {manifest.fingerprint[:12]}, then {snapshot.state['data_fingerprint'][:12]}); use those"
        )


def _backbone(trainer) -> FrozenBackbone:
    return trainer.unwrap(trainer.D).frozen.backbone


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in state.items():
        shapes = {"step": torch.Size(), **dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[index].shape)}
        if {key: value.shape for key, value in moments.items()} != shapes:
            raise ValueError(f"Adam's moments {index} are not those of the network")
    for index, parameter in enumerate(parameters):
        for key, value in state.get(index, {}).items():
            if value.shape == parameter.shape:  # take on its memory layout, which the fused kernel relies on
                state[index][key] = torch.empty_like(parameter).copy_(value)
    # The groups keep the config's learning rates: a resumed run may change them.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

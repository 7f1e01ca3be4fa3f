"""What a definition leaves out, so that one of a run stays the same whatever becomes of the defaults.

Were definitions told from today's defaults, a changed default would make two trainings look like seeds of one, and one
training look like two. A new option is added with the value that changes nothing; nothing here is ever changed.
"""

REFERENCE = {
    "resolution": 128, "base_ch": 32, "z_dim": 128, "cond_dim": 768, "d_scales": 1, "g_norm": "batch",
    "g_modulation": "text+noise", "g_text_blocks": False, "attention": "", "skip_excitation": False,
    "minibatch_std": True, "residual_scale": 1.0, "d_projections": 1, "d_base_ch": 0, "frozen_backbone": "",
    "frozen_size": 0, "mismatch_weight": 1.0, "mismatch_cosine": 0.999, "g_mismatch_weight": 0.0, "text_noise": 0.0,
    "unconditional_kimg": 0.0, "ramp_kimg": 0.0, "r1_penalty": 0.1, "r2_penalty": 0.1, "r1_interval": 4,
    "r1_end": 1.0, "r1_kimg": None, "patience": 0, "watch_loss_low": 0.1, "watch_spike": 5.0, "watch_logit": 20.0,
    "watch_diverged": 100.0, "watch_norm": 100.0, "watch_scale": 16.0, "watch_diversity": 0.05, "watch_text": 0.1,
    "watch_after": 500, "on_divergence": "rollback", "max_rollbacks": 3, "rollback_lr": 0.5, "rollback_r1": 2.0,
    "rollback_skip": 100, "on_collapse": "warn", "on_d_winning": "warn", "adaptive_augment": False,
    "ada_target": 0.6, "ada_kimg": 500.0, "adaptive_d_steps": False, "adaptive_r1": False, "iters": 100000,
    "kimg": None, "batch": 32, "batch_gpu": None, "loss": "relativistic", "lecam": 0.0, "feature_matching": 0.0,
    "perceptual": 0.0, "perceptual_weights": None, "frozen_weights": None, "clip_guidance": 0.0,
    "clip_guidance_weights": None, "d_steps": 2, "mirror": False, "diffaug": "translation", "augment_p": 1.0,
    "lr_g": 0.00025, "lr_d": 0.0005, "beta1": 0.0, "beta2": 0.99, "grad_clip": 0.0, "mixed_precision": None,
    "compile": "no", "sync_bn": False, "ema_decay": 0.999, "ema_start": 0, "ema_ramp": True, "ema_kimg": None,
    "ema_rampup": 0.0, "ema_profiles": "", "g_text_norm": False, "match_width": 0, "match_weight": 0.0,
    "g_match_weight": 0.0, "match_captions": 64, "pairs": False, "std_group": 4, "fresh_for_g": False,
    "frozen_width": 256, "frozen_kernel": 3, "frozen_std": False, "frozen_weight": "even", "frozen_lr": 1.0,
    "frozen_text_lr": 1.0, "frozen_r1": 0.0, "standing_images": 0,
}  # fmt: skip
"""By option that leaves a trace in the trained networks: the value that is not recorded."""

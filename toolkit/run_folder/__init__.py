"""What a run writes: checkpoints, logs, samples, plots."""

"""Whether a run is well: rules over its log, the score of a checkpoint, and what the user is told."""

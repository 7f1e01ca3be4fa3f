"""Variants of a training against each other: equal pictures seen, several seeds, verdicts against the noise."""

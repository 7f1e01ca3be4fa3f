"""Variants of a training against each other: equal images seen, several seeds, verdicts against the noise."""

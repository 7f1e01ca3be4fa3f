"""Scores as pure functions of feature tensors: no images, no networks, no files."""

"""Scores as pure functions of feature tensors: no pictures, no networks, no files."""

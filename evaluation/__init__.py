"""Scores for images: FID, Inception Score, CLIP score, and an oracle for the toy dishes."""

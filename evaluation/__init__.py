"""Scores for pictures: FID, Inception Score, CLIP score, and an oracle for the toy dishes."""

"""Tars of other makers, adopted as they are."""

"""Runs against runs: seeds as error bars, and a verdict whether a difference exceeds the noise."""

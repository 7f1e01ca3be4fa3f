"""From sources to scores: every image once through every network, then the metrics."""

"""A page about a shard folder: what is in it, what was left out, what looks twice, what a few samples look like."""

"""Shards and pictures: reading them, and turning them into batches."""

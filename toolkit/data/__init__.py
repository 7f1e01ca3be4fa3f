"""Shards and images: reading them, and turning them into batches."""

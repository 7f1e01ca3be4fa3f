"""The parts of `shards.embed`."""

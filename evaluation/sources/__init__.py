"""What is scored: images of a folder, of shards or of a checkpoint, which of them, and what tells them apart."""

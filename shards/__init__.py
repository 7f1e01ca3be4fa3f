"""Caption folders to WebDataset shards: read captions, embed them, write, check."""

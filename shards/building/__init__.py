"""From captioned images to a shard folder: planned, cut into parts, built in parallel, merged."""

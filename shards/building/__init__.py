"""From captioned pictures to a shard folder: planned, cut into parts, built in parallel, merged."""

"""What a folder of captioned pictures holds: files, tables, captions; and what of it is unusable."""

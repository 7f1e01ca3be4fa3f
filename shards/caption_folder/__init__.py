"""What a folder of captioned images holds: files, tables, captions; and what of it is unusable."""

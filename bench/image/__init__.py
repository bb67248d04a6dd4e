"""Images: any source of a root file system turned into one reproducible ``.erofs`` file."""

"""Questions in batches, to answers."""

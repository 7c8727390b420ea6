"""The drawn world: what it shows, what is true of it, how one asks."""

"""The processes: thin shells around the library."""

"""The configuration: every key with its default and limits, and how files and variables are read."""

"""What a person may set: every key, its default and limits, and how files and variables are read."""

"""What a source may reach, and how it is reached."""

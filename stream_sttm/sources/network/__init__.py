"""What a source may reach, and how it connects."""

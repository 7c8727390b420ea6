"""Sessions and archives on disk."""

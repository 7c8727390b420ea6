"""What has left the cache, and how a question finds it again."""

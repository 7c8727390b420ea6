"""Standing queries: when each is asked, and what its answers mean."""

"""How people and programs reach in: HTTP, its live events, and the page."""

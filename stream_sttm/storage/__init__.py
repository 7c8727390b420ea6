"""Storage on disk: answers, events, waiting messages. SQLite, or PostgreSQL for the answers."""

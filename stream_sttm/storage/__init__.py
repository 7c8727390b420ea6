"""What is kept on disk: answers, events, waiting messages. SQLite, or PostgreSQL for answers."""

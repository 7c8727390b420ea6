"""What may change while the service runs: additions over HTTP, switches, differences between configurations."""

"""The HTTP interface: questions, live events, control, and the page."""

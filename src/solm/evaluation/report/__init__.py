"""Self-contained HTML pages about results."""

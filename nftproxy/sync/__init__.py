"""Bringing the table in step with the store: when, in which order, and what is done about what fails."""

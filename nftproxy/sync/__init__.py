"""Bringing the table in step with the store.

When, in which order, and what is done about what fails.
"""

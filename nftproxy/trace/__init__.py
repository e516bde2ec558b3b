"""Observing real connections: which rules their first packet meets, and what is answered."""

"""What a proxy answers and reports: health, metrics, events."""

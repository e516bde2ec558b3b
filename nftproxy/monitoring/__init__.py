"""What others ask a proxy or hear from it: health, metrics, events."""

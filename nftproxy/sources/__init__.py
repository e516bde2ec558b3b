"""The sources of objects: an API server, or manifests in files."""

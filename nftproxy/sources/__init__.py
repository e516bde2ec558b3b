"""Where objects come from: an API server, or manifests in files."""

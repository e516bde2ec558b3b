"""The node itself, besides the table: facts, settings, leftovers of other proxies."""

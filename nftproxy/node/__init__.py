"""What the node itself is asked, set or cleared of, besides the table."""

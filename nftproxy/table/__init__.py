"""The nftables table: its rules, its elements, writing and reading it."""

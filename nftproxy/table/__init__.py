"""The table: its schema, its program, and the plan of its changes.

Pure: no module here opens the kernel.
"""

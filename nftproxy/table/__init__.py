"""What the table is, and what it has to become. Pure: no module here opens the kernel."""

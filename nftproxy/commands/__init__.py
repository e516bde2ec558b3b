"""The commands, a module each: what the arguments mean, and what is printed."""

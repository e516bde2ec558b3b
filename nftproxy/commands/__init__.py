"""The commands, a module each: their arguments and their output."""

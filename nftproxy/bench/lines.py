"""What child processes of the bench say: lines of JSON."""

import os
import sys

import msgspec


def say(message: object) -> None:
    """Print a message as one line; end this process if nobody reads any more.

    That is so when the bench was ended early, as by Ctrl-C.
    """
    try:
        print(msgspec.json.encode(message).decode(), flush=True)
    except BrokenPipeError:
        # Python writes what is left when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit()

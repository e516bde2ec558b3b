"""The answers of /debug/pprof: Python's counterparts of Go's profiles, as text.

Tools for Go's binary format cannot read these; the index says so. Stacks are those of threads; a
sampled profile is in the folded format of flame graph programs: one line per stack, outermost
function first, with the number of samples.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from types import FrameType

INTERVAL = 0.01  # seconds between samples
LONGEST = 60.0  # seconds

INDEX = """nftproxy is written in Python: these profiles are text, not Go's format.

/debug/pprof/cmdline            the command line, NUL between arguments
/debug/pprof/goroutine          what all threads and asyncio tasks are doing now
/debug/pprof/profile?seconds=N  where time goes, sampled for N seconds (30): folded stacks
"""


def stacks() -> str:
    """Return the stacks of all threads, and of the tasks of the running event loop."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented, for debuggers
        parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    for task in asyncio.all_tasks():
        lines = [line for frame in task.get_stack() for line in traceback.format_stack(frame, 1)]
        parts.append(f"task {task.get_name()}:\n{''.join(lines)}")
    return "\n".join(parts)


def sample(seconds: float) -> str:
    """Watch all other threads for a while and return folded stacks; blocks."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + min(seconds, LONGEST)
    me = threading.get_ident()
    while time.monotonic() < end:
        for ident, frame in sys._current_frames().items():  # noqa: SLF001 - see above
            if ident != me:
                seen[_folded(frame)] += 1
        time.sleep(INTERVAL)
    return "".join(f"{stack} {count}\n" for stack, count in seen.most_common())


def _folded(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None:
        names.append(f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return ";".join(reversed(names))

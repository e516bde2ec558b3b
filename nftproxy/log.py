"""Log lines: text for people, one JSON object a line for collectors."""

import sys

from loguru import logger


def start(form: str = "text", *, verbosity: int = 0) -> None:
    """Log to standard error as `text` or `json`; from verbosity 4 on with debugging lines."""
    level = "DEBUG" if verbosity >= 4 else "INFO"
    logger.remove()
    if form == "json":
        logger.add(sys.stderr, level=level, serialize=True, backtrace=False, diagnose=False)
    else:
        text = (
            "<green>{time:YYYY-MM-DDTHH:mm:ss.SSSZZ}</green> <level>{level: <7}</level> {message}"
        )
        # diagnose=False: tracebacks must not print the values of variables, which may be
        # credentials.
        logger.add(
            sys.stderr,
            level=level,
            format=text,
            colorize=sys.stderr.isatty(),
            backtrace=False,
            diagnose=False,
        )

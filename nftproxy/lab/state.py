"""The file of a lab in /run: its shape, from which all names and addresses follow.

The file is written before the first namespace and deleted after the last one, so it also reserves
the name: of two processes that build the same lab at the same time one is refused. A lab can be
removed without it.
"""

import os
from pathlib import Path

import msgspec

from nftproxy.errors import NftproxyError
from nftproxy.lab.plan import Shape

DIRECTORY = Path("/run/nftproxy-lab")


def claim(shape: Shape) -> None:
    """Write the file; raise an error if the lab has one."""
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    try:
        descriptor = os.open(
            _path(shape.name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
    except FileExistsError:
        raise NftproxyError(
            f"there is a lab {shape.name!r} already", hint=f"nftproxy lab down --name {shape.name}"
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(shape))


def read(name: str) -> Shape | None:
    """Return the shape of a lab; None without a complete file."""
    try:
        return msgspec.json.decode(_path(name).read_bytes(), type=Shape)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def release(name: str) -> bool:
    """Remove the file; return whether there was one."""
    try:
        _path(name).unlink()
    except FileNotFoundError:
        return False
    return True


def names() -> list[str]:
    """Return the names of all labs that have a file."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def _path(name: str) -> Path:
    return DIRECTORY / f"{name}.json"

"""Folders of manifests where inotify has no room left, in a user namespace."""

import subprocess
import sys
from pathlib import Path

WITHOUT_INOTIFY = """
import asyncio, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from nftproxy.sources.folders import Folders
Path("/proc/sys/user/max_inotify_instances").write_text("0")

async def follow():
    with Folders([Path(sys.argv[1])]) as folders:
        for _ in range(2):
            await asyncio.wait_for(folders.changed(), 3)

asyncio.run(follow())
"""


def test_without_inotify_folders_are_looked_at_every_second(tmp_path: Path) -> None:
    """In a user namespace, whose limit is its own."""
    argv = [
        "unshare",
        "--user",
        "--map-root-user",
        sys.executable,
        "-c",
        WITHOUT_INOTIFY,
        str(tmp_path),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert "inotify: Too many open files; folders are read every 1 s instead" in warning

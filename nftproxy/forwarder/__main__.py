"""The forwarder's process: `python -m nftproxy.forwarder`, started by the proxy.

Instructions come from standard input, bulletins go to standard output. The end of the input is the
end of the process, however the proxy ended; signals, which a terminal or a service manager sends to
both, are for the proxy.
"""

import asyncio
import contextlib
import resource
import signal
import sys
from pathlib import Path

from nftproxy.forwarder.bounds import bounds
from nftproxy.forwarder.messages import Bulletin, encode, to_instruction
from nftproxy.forwarder.ports import LocalPorts

LINE = 1 << 28  # bytes of an instruction: the NodePorts of a whole cluster


async def serve(descriptors: int) -> None:
    """Obey until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    output, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)

    def report(bulletin: Bulletin) -> None:
        output.write(encode(bulletin))

    ports = LocalPorts(bounds(descriptors), report)
    try:
        while line := await reader.readline():
            ports.obey(to_instruction(line))
    finally:
        ports.close()


def main() -> None:
    """Run with as many open files as the machine allows."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The proxy is protected from the end of memory; what clients make the forwarder hold is not
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0", encoding="ascii")
    asyncio.run(serve(most))


if __name__ == "__main__":
    main()

"""The entry point: `python -m nftproxy`, and the programs `nftproxy` and `kube-proxy`.

Loading the rest takes 0.1 to 0.4 s. A service that gets a signal in that time ends with exit code
0, as it does later (contract 8.1.1); the first process of a container would not even see the
signal. Python's own start before this module, some 10 ms, cannot be covered. A one-time command is
different: it ends as any program that a signal ends, so that its caller notices.
"""

import signal
import sys
from collections.abc import Sequence

_ONCE = {"--cleanup", "--init-only", "--write-config-to"}


def main() -> None:
    """Run the program nftproxy."""
    match sys.argv[1:]:
        case ["run", *_]:
            _stop_in_good_order()
        case ["kube-proxy", *flags]:
            _stop_service(flags)
    from nftproxy import cli

    cli.main()


def kube_proxy() -> None:
    """Run the program kube-proxy."""
    _stop_service(sys.argv[1:])
    from nftproxy.commands import kube_proxy

    kube_proxy.main()


def _stop_service(flags: Sequence[str]) -> None:
    if _ONCE.isdisjoint(flag.partition("=")[0].replace("_", "-") for flag in flags):
        _stop_in_good_order()


def _stop_in_good_order() -> None:
    """Let signals end this process with exit code 0, until an event loop handles them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


if __name__ == "__main__":
    main()

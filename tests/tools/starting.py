"""How long kube-proxy takes from its start to `in step`, in the image with a read-only root and as
a process of the host.

    python -m tests.tools.starting [ROUNDS]

After `make test-image`, which leaves the image in build/image.

Both read the same 54 objects from a stand-in for the API server, in a network of their own.
Processor time is that of the process.
"""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from release.image import Bare
from tests.support.paths import ROOT

_SERVER = """
import sys, threading
from tests.support.fake_apiserver import FakeApiServer
with FakeApiServer() as server:
    for number in range(50):
        name = f"s{number}"
        server.begin_with("services", {"metadata": {"name": name, "namespace": "default"}, "spec": {
            "clusterIP": f"10.96.1.{number}", "clusterIPs": [f"10.96.1.{number}"],
            "ports": [{"port": 80}]}})
    address = {"type": "InternalIP", "address": "127.0.0.1"}
    server.begin_with("nodes", {"metadata": {"name": "node1"}, "status": {"addresses": [address]}})
    print(server.url, flush=True)
    threading.Event().wait()
"""

_START = """
test -z "$READ_ONLY" || mount -o remount,bind,ro /
"$BIN/python3" -c 'import pyroute2; pyroute2.IPRoute().link("set", index=1, state="up")'
mount -t tmpfs tmpfs /tmp
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$TRIAL" "$BIN/python3" "$TRIAL/server.py" >/tmp/url &
until [ -s /tmp/url ]; do sleep 0.1; done
begin=$(date +%s%N)
"$BIN/kube-proxy" --master="$(cat /tmp/url)" --hostname-override=node1 \
    --cluster-cidr=10.244.0.0/16 \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
    --conntrack-tcp-timeout-close-wait=0 2>/tmp/log &
until grep --quiet 'in step' /tmp/log; do sleep 0.01; kill -0 $! || { cat /tmp/log; exit 1; }; done
end=$(date +%s%N)
set -- $(cat /proc/$!/stat)
echo "TIME $(((end - begin) / 1000000)) $(((${14} + ${15}) * 10))" >&2
"""


def main() -> None:
    """Measure both, in turn, and print medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    image = Bare(ROOT / "build/image/image")
    trial = image.path / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    (trial / "tests/support").mkdir(parents=True)
    for name in ("__init__", "support/__init__", "support/fake_apiserver", "support/paths"):
        shutil.copy(ROOT / f"tests/{name}.py", trial / f"tests/{name}.py")
    (trial / "server.py").write_text(_SERVER)
    inside = {"BIN": "/opt/nftproxy/bin", "TRIAL": "/trial", "READ_ONLY": "yes"}
    outside = {"BIN": str(Path(sys.executable).parent), "TRIAL": str(trial), "READ_ONLY": ""}
    measured: dict[str, list[tuple[int, int]]] = {"image": [], "host": []}
    for _ in range(rounds):
        measured["image"].append(_time(["sh", "-ec", _START], inside, image))
        measured["host"].append(_time(["sh", "-ec", _START], outside, None))
    shutil.rmtree(trial)
    for where, times in measured.items():
        took, busy = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"{where}: in step after {took:.0f} ms, of which {busy:.0f} ms of processor time")


def _time(argv: list[str], environment: dict[str, str], image: Bare | None) -> tuple[int, int]:
    """Return the milliseconds of one start: passed, and of processor time."""
    spaces = ["--mount", "--pid", "--fork", "--kill-child", "--net"]
    entry = ["sh", str(ROOT / "release/inside.sh"), str(image.path)] if image else []
    mounted = [] if image else ["--mount-proc"]
    done = subprocess.run(
        ["unshare", *spaces, *mounted, *entry, *argv],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("TIME ")]
    if not lines:
        raise SystemExit(done.stderr + done.stdout)
    _, took, busy = lines[-1].split()
    return int(took), int(busy)


if __name__ == "__main__":
    main()

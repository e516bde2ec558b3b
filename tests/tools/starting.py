"""What a start of kube-proxy takes, until it is in step: in the image with a read-only root, and
as a process of the host.

    python -m tests.tools.starting --services 50

After `make test-image`, which leaves the image in build/image. Both read the same objects from a
stand-in for the API server, in a network of their own. Processor time and memory are those of the
process; memory is what is resident once it is in step.
"""

import argparse
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
    for number in range(int(sys.argv[1])):
        name, address = f"s{number}", f"10.97.{number // 250}.{number % 250}"
        server.begin_with("services", {"metadata": {"name": name, "namespace": "default"}, "spec": {
            "clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}]}})
        labels = {"kubernetes.io/service-name": name}
        pods = [{"addresses": [f"10.244.{number // 250}.{host}"], "conditions": {"ready": True}}
                for host in (1, 2, 3)]
        server.begin_with("endpointslices", {
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": pods})
    node = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
    server.begin_with("nodes", {"metadata": {"name": "node1"}, "status": node})
    print(server.url, flush=True)
    threading.Event().wait()
"""

_START = """
test -z "$READ_ONLY" || mount -o remount,bind,ro /
"$BIN/python3" -c 'import pyroute2; pyroute2.IPRoute().link("set", index=1, state="up")'
mount -t tmpfs tmpfs /tmp
PYTHONPATH="$TRIAL" "$BIN/python3" -B "$TRIAL/server.py" "$SERVICES" >/tmp/url &
until [ -s /tmp/url ]; do sleep 0.1; done
begin=$(date +%s%N)
"$BIN/kube-proxy" --master="$(cat /tmp/url)" --hostname-override=node1 \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 \
    --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 2>/tmp/log &
until [ "$(grep --count 'in step' /tmp/log)" = 2 ]; do
    sleep 0.01
    kill -0 $! || { cat /tmp/log; exit 1; }
done
end=$(date +%s%N)
memory=$(awk '/VmRSS/ {print $2}' /proc/$!/status)
set -- $(cat /proc/$!/stat)
echo "TOOK $(((end - begin) / 1000000)) $(((${14} + ${15}) * 10)) $memory" >&2
"""


def main() -> None:
    """Measure both, in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=50, help="with 3 endpoints each [50]")
    parser.add_argument("--rounds", type=int, default=5, help="how often [5]")
    given = parser.parse_args()
    image = Bare(ROOT / "build/image/image")
    trial = image.path / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    (trial / "tests/support").mkdir(parents=True)
    for name in ("__init__", "support/__init__", "support/fake_apiserver", "support/paths"):
        shutil.copy(ROOT / f"tests/{name}.py", trial / f"tests/{name}.py")
    (trial / "server.py").write_text(_SERVER)
    common = {"SERVICES": str(given.services)}
    inside = {**common, "BIN": "/opt/nftproxy/bin", "TRIAL": "/trial", "READ_ONLY": "yes"}
    host = str(Path(sys.executable).parent)
    outside = {**common, "BIN": host, "TRIAL": str(trial), "READ_ONLY": ""}
    measured: dict[str, list[list[int]]] = {"image": [], "host": []}
    for _ in range(given.rounds):
        measured["image"].append(_start(inside, image))
        measured["host"].append(_start(outside, None))
    shutil.rmtree(trial)
    for where, starts in measured.items():
        took, busy, memory = (statistics.median(each) for each in zip(*starts, strict=True))
        print(f"{where}: {took:.0f} ms, {busy:.0f} ms of a processor, {memory / 1024:.0f} MiB")


def _start(environment: dict[str, str], image: Bare | None) -> list[int]:
    """Return of one start: milliseconds until it is in step, those of a processor, resident KiB."""
    spaces = ["--mount", "--pid", "--fork", "--kill-child", "--net"]
    entry = ["sh", str(ROOT / "release/inside.sh"), str(image.path)] if image else []
    mounted = [] if image else ["--mount-proc"]
    done = subprocess.run(
        ["unshare", *spaces, *mounted, *entry, "sh", "-ec", _START],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("TOOK ")]
    if not lines:
        raise SystemExit(done.stderr + done.stdout)
    return [int(each) for each in lines[-1].split()[1:]]


if __name__ == "__main__":
    main()

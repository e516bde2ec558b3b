"""`make test-image`: the steps of deploy/Dockerfile, done in folders made by debootstrap, and what comes out tried.

No container engine is needed. What a step means is what the Dockerfile reference says of the few instructions used there; any other
is an error.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.bare import CACHE, ROOT, Bare

# What the image has to do without a cluster: answer, read kubeadm's file (contract 10.3.2, 10.3.5), and keep a table.
TRIALS = """
kube-proxy --version
cat >/tmp/config.conf <<'END'
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
clientConnection:
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
clusterCIDR: 10.244.0.0/16
mode: ""
END
/usr/local/bin/kube-proxy --config=/tmp/config.conf --hostname-override=node1 --write-config-to=/tmp/written.conf
grep --quiet 'mode: nftables' /tmp/written.conf
cp --recursive "$(find /opt/nftproxy -type d -name examples -path '*nftproxy/examples')" /tmp/examples
nftproxy run --manifests /tmp/examples --node-name node1 --cluster-cidr 10.244.0.0/16 2>/tmp/log &
tries=0
until nftproxy show 2>/dev/null | grep default/web:http; do
    tries=$((tries + 1)); [ $tries -lt 50 ] || { cat /tmp/log; exit 1; }
    sleep 0.2
done
kill $!; wait $! || true
nftproxy cleanup
iptables-save >/dev/null
test ! -e /opt/nftproxy/bin/pip
"""


class Step(NamedTuple):
    """An instruction and what follows it."""

    instruction: str
    rest: str


def steps(dockerfile: str) -> Iterator[Step]:
    """Yield the instructions of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        yield Step(instruction, rest.strip())


def copy(rest: str, stages: dict[str, Bare], into: Bare) -> None:
    """Do a COPY: a file or folder to a path, or several files into a folder."""
    words = shlex.split(rest)
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].path
    *names, target = words
    for name in names:
        origin, destination = source / name.lstrip("/"), into.path / target.lstrip("/")
        if origin.is_dir():
            shutil.copytree(origin, destination, symlinks=True, dirs_exist_ok=True)
        else:
            if target.endswith("/"):
                destination /= origin.name
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, destination)


def build(dockerfile: str) -> Bare:
    """Do all steps and return the last stage."""
    stages: dict[str, Bare] = {}
    environment: dict[str, str] = {}
    current: Bare | None = None
    for number, (instruction, rest) in enumerate(steps(dockerfile), 1):
        print(f"{number}: {instruction} {rest}", flush=True)
        if instruction == "FROM":
            found = re.fullmatch(r"debian:(\w+)-slim(?: AS (\w+))?", rest)
            if not found:
                raise ValueError(f"not a base this can make: {rest}")
            name = found[2] or "image"
            current = stages[name] = Bare.copy(found[1], CACHE / name)
            environment = {}
        elif current is None:
            raise ValueError(f"{instruction} before FROM")
        elif instruction == "RUN":
            current.run(rest, env=environment)
        elif instruction == "COPY":
            copy(rest, stages, current)
        elif instruction == "ARG":
            argument, _, value = rest.partition("=")
            environment[argument] = value
        elif instruction != "ENTRYPOINT":
            raise ValueError(f"unknown instruction {instruction}")
    assert current
    return current


def main() -> int:
    """Build, and try."""
    image = build((ROOT / "deploy/Dockerfile").read_text())
    image.run(TRIALS, alone=True)
    size = subprocess.run(["du", "-sm", str(image.path)], check=True, capture_output=True, text=True).stdout.split()[0]
    print(f"the image works: {image.path}, {size} MB")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"exit code {error.returncode}: {error.cmd[-1]}")

"""`make test-image`: the image that release/image.py builds by the steps of deploy/Dockerfile,
tried.
"""

import json
import shutil
import subprocess
import sys
import tarfile

from release.image import DOCKERFILE, ROOT, archive, build
from tests.support.pki import Authority

LIMIT = 140_000_000
"""The most bytes that the files of the image may have, unpacked."""

# What the image has to do without a cluster, with a root that is read-only, as in the DaemonSet:
# answer, read kubeadm's file (contract 10.3.2, 10.3.5), send credentials of each kind to an API
# server, and keep a table. What it compiles at a start, it would compile at each, so it has to find
# bytecode for everything.
TRIALS = """
mount -o remount,bind,ro /
! touch /opt/nftproxy/probe 2>/dev/null
for module in $(find /opt/nftproxy -name '*.py'); do
    compiled=${module%/*}/__pycache__/$(basename "$module" .py).cpython-3*.pyc
    test -e $compiled || { echo "$module is not compiled"; exit 1; }
done
kube-proxy --version | grep --quiet 0.0.1
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
/opt/nftproxy/bin/python3 -c 'import pyroute2; pyroute2.IPRoute().link("set", index=1, state="up")'
/opt/nftproxy/bin/python3 /trial/credentials.py /trial
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
for command in render diff show top page explain trace doctor report lab; do nftproxy $command --help >/dev/null; done
test ! -e /opt/nftproxy/bin/pip
"""  # noqa: E501


def main() -> int:
    """Build, try, and look into the archive."""
    folder = ROOT / "build/image"
    image = build(DOCKERFILE.read_text(), folder, {"VERSION": "0.0.1", "REVISION": "0123abc"})
    trial = image.bare.path / "trial"
    trial.mkdir()
    authority = Authority(trial)
    authority.server("server", ["127.0.0.1"])
    authority.client("reader")
    shutil.copy(ROOT / "tests/tools/credentials.py", trial)
    image.bare.run(TRIALS, alone=True)
    shutil.rmtree(trial)
    output = folder / "nftproxy.tar"
    archive(image, "nftproxy:test", output)
    with tarfile.open(output) as tar:
        (manifest,) = json.loads(_content(tar, "manifest.json"))
        configuration = json.loads(_content(tar, manifest["Config"]))
        layer = tar.extractfile(manifest["Layers"][0])
        assert layer
        with tarfile.open(fileobj=layer) as files:
            members = files.getmembers()
    assert manifest["RepoTags"] == ["nftproxy:test"]
    assert configuration["config"]["Entrypoint"] == ["/usr/local/bin/kube-proxy"]
    labels = configuration["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.0.1"
    assert labels["org.opencontainers.image.revision"] == "0123abc"
    names = {member.name for member in members}
    assert {"./usr/local/bin/kube-proxy", "./opt/nftproxy/bin/nftproxy", "./tmp"} <= names
    unpacked = sum(member.size for member in members)
    print(f"{output}: {unpacked / 1e6:.0f} MB unpacked")
    assert unpacked <= LIMIT, f"the image has at most {LIMIT / 1e6:.0f} MB"
    print("the image works")
    return 0


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file
    return file.read()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"exit code {error.returncode}: {error.cmd[-1]}")

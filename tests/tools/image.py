"""`make test-image`: the image that release/image.py builds by the steps of deploy/Dockerfile,
tried.
"""

import json
import subprocess
import sys
import tarfile

from release.image import DOCKERFILE, ROOT, archive, build

# What the image has to do without a cluster: answer, read kubeadm's file (contract 10.3.2, 10.3.5),
# and keep a table.
TRIALS = """
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
"""  # noqa: E501


def main() -> int:
    """Build, try, and look into the archive."""
    folder = ROOT / "build/image"
    image = build(DOCKERFILE.read_text(), folder, {"VERSION": "0.0.1"})
    image.bare.run(TRIALS, alone=True)
    output = folder / "nftproxy.tar"
    archive(image, "nftproxy:test", output)
    with tarfile.open(output) as tar:
        (manifest,) = json.loads(_content(tar, "manifest.json"))
        configuration = json.loads(_content(tar, manifest["Config"]))
        layer = tar.extractfile(manifest["Layers"][0])
        assert layer
        with tarfile.open(fileobj=layer) as files:
            names = set(files.getnames())
    assert manifest["RepoTags"] == ["nftproxy:test"]
    assert configuration["config"]["Entrypoint"] == ["/usr/local/bin/kube-proxy"]
    assert {"./usr/local/bin/kube-proxy", "./opt/nftproxy/bin/nftproxy", "./tmp"} <= names
    print(f"the image works: {output}, {output.stat().st_size >> 20} MB")
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

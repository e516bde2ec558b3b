"""The effective configuration: file and flags merged, with the precedence of each command.

- `kube_proxy`: with --config the file counts, and nearly all other flags are ignored (contract
  8.1.4);
- `node` (for `render` and `diff`) and `run`: each flag wins over the file.

Reads the file and does not interpret the values. The result is complete but not validated:
`validation.require_valid` does that, after logging is set up (contract 8.1.2).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from nftproxy.configuration import config, configfile
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.configuration.flags import FLAGS, NODE_FLAGS, RUN_FLAGS, Flag, Values, layer

_BESIDE_THE_FILE: Final = frozenset(
    {
        "config",
        "write-config-to",
        "cleanup",
        "init-only",
        "master",
        "boot-id-file",
        "machine-id-file",
    }
)


def kube_proxy(values: Values) -> tuple[KubeProxyConfiguration, list[str]]:
    """Return the configuration of the command `kube-proxy` and warnings.

    ConfigError if the file is unusable.

    `values` are the parameters of a command with `flags.kube_proxy_options`. --hostname-override
    and the logging flags win over the file; --vmodule's patterns precede the file's (contract
    8.1.4).
    """
    if not values.get("config"):
        fields = layer(FLAGS, values)
        _apply_deprecated_ports(fields, values)
        return config.build(fields), []
    file, warnings = configfile.read_file(Path(values["config"]))
    obeyed = [
        flag
        for flag in FLAGS
        if flag.field == "hostnameOverride" or flag.field.startswith("logging.")
    ]
    for flag in FLAGS:
        if (
            flag not in obeyed
            and flag.name not in _BESIDE_THE_FILE
            and flag.given(values) is not None
        ):
            warnings.append(f"--{flag.name}: ignored, because --config is given")
    fields = layer(obeyed, values)
    if patterns := fields.get("logging", {}).get("vmodule"):
        fields["logging"]["vmodule"] = (*patterns, *file.get("logging", {}).get("vmodule", ()))
    return config.build(file, fields), warnings


def node(values: Values) -> tuple[KubeProxyConfiguration, list[str]]:
    """Return the configuration of `render` or `diff` and warnings.

    ConfigError if the file is unusable.

    `values` are the parameters of a command with `flags.node_options`; others in it are ignored.
    """
    return _beside_file(NODE_FLAGS, values)


def run(values: Values) -> tuple[KubeProxyConfiguration, list[str]]:
    """Return the configuration of `run` from the parameters that `flags.run_options` adds."""
    return _beside_file(RUN_FLAGS, values)


def _beside_file(flags: Iterable[Flag], values: Values) -> tuple[KubeProxyConfiguration, list[str]]:
    file: config.Sparse = {}
    warnings: list[str] = []
    if values.get("config"):
        file, warnings = configfile.read_file(Path(values["config"]))
    fields = layer(flags, values)
    _apply_deprecated_ports(fields, values)
    return config.build(file, fields), warnings


def _apply_deprecated_ports(fields: dict[str, Any], values: Values) -> None:
    """Apply --healthz-port and --metrics-port, which --config and --write-config-to void (8.4)."""
    if values.get("write_config_to"):
        return
    for field, port in (
        ("healthzBindAddress", values.get("healthz_port")),
        ("metricsBindAddress", values.get("metrics_port")),
    ):
        if port == 0:
            fields[field] = (
                ""  # switches the server off; validation refuses that for metrics (contract 8.3.7)
            )
        elif port is not None and field in fields:
            fields[field] = config.with_port(fields[field], port)

"""From kube-proxy's flags and configuration file to the settings of a node."""

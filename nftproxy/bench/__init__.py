"""`nftproxy bench`: what a service proxy costs, measured on the machine at hand, side by side with other ways to build one.

A *mode* is one way to lay out rules for Services: ours, or a baseline rendered by code of our own. All get the same `workload`, in
the same namespaces, and are measured by the same code.

    workload     which services there are, and their objects
    offer        the services of one round, of which some are for a measure of their own
    modes        what each mode writes for them
    bed          the namespaces: a client, the node that is measured, a host of endpoints
    server       what answers on all endpoints
    client       what connects, in a process of its own
    measures     what is measured: names, units, and the rows of the table
    control      a mode's syncs and memory, in a process of each mode's own
    api          requests to an API server
    controlplane an API server of its own, for the real kube-proxy
    traffic      packets through a mode's node
    plan         which sizes and modes, how often, how long
    rounds       a run: modes take turns, so that noise hits all alike
    statistics   percentiles, and ratios within one run
    report       the table in the terminal, and CSV with all samples
    machine      ... and with the machine's description
    charts       pictures of them, for which matplotlib is an extra
    cli          the command
"""

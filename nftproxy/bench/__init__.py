"""`nftproxy bench`: the cost of a service proxy on this machine, side by side with other designs.

A *mode* is one way to lay out rules for Services: ours, or a baseline that this package renders.
All get the same `workload` in the same namespaces, and the same code measures them.

    workload     the services, and their objects
    offer        the services of one round, some for a measure of their own
    modes        the rules that each mode writes
    bed          the namespaces: a client, the measured node, a host of endpoints
    server       the process that answers on all endpoints
    client       the process that connects
    measures     names, units, and the rows of the table
    control      a mode's syncs and memory, in a process of each mode's own
    api          requests to an API server
    controlplane an API server of its own, for the real kube-proxy
    traffic      packets through a mode's node
    plan         sizes, modes, repetitions, durations
    rounds       a run: modes take turns, so that noise hits all alike
    shapes       odd Services and plain ones, compared without packets
    statistics   percentiles, and ratios within one run
    report       the table in the terminal, and CSV with all samples
    machine      ... and with the machine's description
    charts       charts, with the extra matplotlib
    cli          the command
"""

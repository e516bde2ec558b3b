"""`nftproxy bench`: what a service proxy costs, measured on the machine at hand, side by side with other ways to build one.

A *mode* is one way to lay out rules for Services: ours, or a baseline rendered by code of our own. All get the same `workload`, in
the same namespaces, and are measured by the same code.

    workload     which services there are, and their objects
    modes        what each mode writes for them
    bed          the namespaces: a node that is measured, a network with clients, one with endpoints
    measures     what is measured, each as a function of a mode that returns samples
    control      ... of syncs and memory, in a process of each mode's own
    traffic      ... of packets, from the clients' namespace
    plan         which mode, size and repetition comes when: modes take turns, so that noise hits all alike
    statistics   percentiles, and ratios within one run
    report       the table in the terminal, and CSV with all samples and the machine's description
    charts       pictures of them, for which matplotlib is an extra
    cli          the command
"""

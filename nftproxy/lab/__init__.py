"""Throw-away clusters made of Linux network namespaces.

Nodes, pods, an underlay and outside clients, with real packets.

    cli          the commands `nftproxy lab ...`
    demo         a walk through the behaviour of nftproxy, on a lab
    lab          a lab as one object: build, use, tear down
    echo         servers that answer with their name and the client's address
    echo_process the same in another process
    client       connections and their outcomes
    state        the file of a lab in /run
    build        runs the commands of topology
    topology     the `ip` commands and sysctls of a plan
    plan         names and addresses
    namespace    entering a network namespace, processes inside it

Each module imports only what stands below it. Only the demo knows nftproxy: a lab is the same for
any service proxy.
"""

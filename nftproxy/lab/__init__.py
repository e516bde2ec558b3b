"""Throw-away clusters out of Linux network namespaces: nodes, pods, an underlay and outside clients, with real packets.

    cli          the commands `nftproxy lab ...`
    demo         a walk through what nftproxy does, on a lab
    lab          a lab as one object: build, use, tear down
    echo         servers that say who they are and whom they saw; echo_process: the same in another process
    client       connections that say what became of them
    state        what a lab leaves in /run
    build        runs what topology wrote
    topology     the `ip` commands and sysctls of a plan
    plan         names and addresses
    namespace    entering a network namespace, processes inside it

Each module imports only what stands below it. Nothing but the demo knows nftproxy: a lab is the same for any
service proxy.
"""

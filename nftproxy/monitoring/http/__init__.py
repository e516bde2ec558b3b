"""The HTTP servers of this process, all on one event loop.

    pages          the metrics server: /metrics, /healthz, /configz and others (contract 7.3)
    profile        what /debug/pprof answers
    servicehealth  a health check node port for each Service that has one (contract 7.2)
    proxyhealth    the proxy's own health server (contract 7.1)
    server         HTTP with limits against slow and hostile clients
    bind           sockets

Each module imports only what stands below it.
"""

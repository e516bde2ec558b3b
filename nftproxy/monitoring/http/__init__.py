"""What this process answers over HTTP, all on the one event loop.

    pages        the metrics server: /metrics, /healthz, /configz and others (contract 7.3)
    profile      what /debug/pprof answers
    checks       a health check node port for each Service that wants one (7.2)
    liveness     the proxy's own health server (7.1)
    server       HTTP with limits: no client, slow or hostile, takes more than its share
    bind         sockets

Each module imports only what stands below it.
"""

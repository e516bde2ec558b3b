"""A Kubernetes service proxy: its ruleset is a constant program, its services are data.

The flow, file by file: a source (`sources.manifests`, or `sources.kubesource` for an API server)
delivers objects (`model`) to the `store`; `selection` decides which endpoints each service port
has, `compiler` turns that into routes and their elements, `difference` finds what has changed,
`table.kernel` commits it to the table that `table.program` describes, and `runner` keeps doing so.
"""

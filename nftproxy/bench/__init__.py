"""`nftproxy bench`: what a service proxy costs, measured on the machine at hand, side by side with other ways to build one.

A *mode* is one way to lay out rules for Services: ours, or a baseline rendered by code of our own. All get the same `workload`, in
the same namespaces (`bed`), and are measured by the same code (`measures`).
"""

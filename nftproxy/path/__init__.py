"""The way of a packet to an endpoint, computed: what each place looks up, what comes out, and whose rule decides."""

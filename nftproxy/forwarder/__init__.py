"""NodePorts on this machine's loopback addresses, for TCP: a forwarder in a process of its own.

The kernel cannot translate packets to ::1, and to 127.0.0.1 only with a sysctl that opens the
machine to its neighbours. So a process listens there and connects to endpoints itself. It is a
child of the proxy, for two reasons: bytes that it moves never wait for a sync, nor a sync for them;
and its end, for whatever reason, is not the end of the proxy.

`process` is the proxy's side. `__main__` is the child: `ports` has a `listener` for each NodePort,
which makes `connection`s of two `direction`s. What both sides say to each other is in `messages`.
The child keeps nothing: after a restart it does what it is asked to, and nothing else.
"""

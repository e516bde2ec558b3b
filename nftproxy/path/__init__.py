"""The way of a packet to an endpoint, computed.

What each place looks up, the result, and whose rule decides.
"""

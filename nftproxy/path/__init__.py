"""The way of a packet to an endpoint, computed.

What each place looks up and finds, and whose rule decides.
"""

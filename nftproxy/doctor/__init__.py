"""What is wrong with this node.

Facts are gathered at thin edges, checks judge them, and nothing is ever changed.
"""

"""What is wrong with this node: facts are gathered, checks judge them, and nothing is changed."""

"""Checks for operators: the laws over the registry, and the certified differences under them."""

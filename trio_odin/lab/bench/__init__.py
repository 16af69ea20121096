"""A benchmark of trio-odin and of other servers that do the same work."""

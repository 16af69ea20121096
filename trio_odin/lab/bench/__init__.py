"""Measuring trio-odin, and other servers that do the same."""

"""Addresses, listening sockets, small HTTP, and the token bucket."""

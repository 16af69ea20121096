"""Addresses, sockets that listen, small HTTP, and the token bucket."""

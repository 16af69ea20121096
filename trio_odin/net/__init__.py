"""Sockets and plain HTTP, the small side that the server and the lab share."""

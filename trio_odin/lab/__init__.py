"""Clients that measure the server from outside.

Architecture invariant: nothing here imports trio_odin.server, so the lab cannot cheat.
"""

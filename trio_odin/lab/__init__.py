"""An outside client that measures the server.

Architecture invariant: nothing in here imports trio_odin.server, so it cannot cheat.
"""

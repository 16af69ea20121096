"""Waits, never decides: the nursery tree and everything in it that touches a socket.

Start with `tree.py`, which shows all of it. The decisions are in `trio_odin.core`.
"""

"""Decides, never waits: no I/O, no clock of its own, no task. Time enters as an argument.

Architecture invariant: nothing in here imports trio, a socket, or any other package of ours.
"""

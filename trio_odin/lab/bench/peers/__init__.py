"""Servers to compare with: the same fan-out, written with other libraries.

Each is a program, `python -m trio_odin.lab.bench.peers.NAME --nats URL`, and speaks the part of
the wire that a load needs: subscribe, its acknowledgement, and a text frame for each delivery.
None of them has a sequence, replay, unsubscribe or eviction.
"""

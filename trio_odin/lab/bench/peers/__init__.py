"""Servers to compare with: the same fan-out as somebody would write it with another library.

Each is a program, `python -m trio_odin.lab.bench.peers.NAME --nats URL`, and speaks the least of
the wire that a load needs: subscribe, its acknowledgement, and a text frame for each delivery.
There is no sequence, no replay, no unsubscribe and no eviction in any of them.
"""

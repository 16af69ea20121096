"""What the server tells about itself: metrics, health, logs.

Architecture invariant: the only importer of prometheus_client. It reads a `Snapshot` that the
server makes when asked; the hot path counts with plain integers and does not know of it.
"""

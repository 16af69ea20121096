"""What the server reports about itself: metrics, health, logs.

Architecture invariant: the only importer of prometheus_client. It reads a `Snapshot` that the
server makes on request. The hot path counts with plain integers and does not depend on it.
"""

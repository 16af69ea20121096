"""NATS: the link, the bridge, the stream, the position in it, and gaps."""

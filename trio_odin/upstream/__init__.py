"""NATS: the link, the bridge, the stream, our position in it, and gaps."""

"""The drill of scale: several nodes behind HAProxy, of which one is killed, and a node of NATS."""

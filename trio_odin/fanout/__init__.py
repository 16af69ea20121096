"""From one event to all subscribers: hub, registry, buffers, and each connection's writer."""

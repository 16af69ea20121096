"""From one event to all subscribers: hub, registry, buffers, one connection's writer."""

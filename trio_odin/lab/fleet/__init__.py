"""Many WebSocket clients in their own processes: the far end of every measurement."""

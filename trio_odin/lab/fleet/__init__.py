"""Many WebSocket clients, in processes of their own: the far end of every measurement."""

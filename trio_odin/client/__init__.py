"""The client: `core` decides, `on_trio` and `on_asyncio` have the sockets."""

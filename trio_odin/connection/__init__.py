"""One connected client: its tasks, its session, its keepalive and its end."""

"""To try it: a market, a publisher, nats-server, a client that watches."""

"""A demonstration: a market, a publisher, nats-server, and a client that watches."""

"""A server of several processes: the supervisor, its worker slots, the link between them."""

"""A server of several processes: the supervisor, its worker slots, and the links to the workers."""

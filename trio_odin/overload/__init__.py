"""The load of the server, and what follows from it: admission and shedding."""

"""The client libraries in the worlds of the oracle: nothing lost unreported, twice or backwards."""

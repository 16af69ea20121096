"""Origins, tokens and grants: which clients may connect, and what they may subscribe to."""

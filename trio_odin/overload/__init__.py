"""How hard the server works, and what follows: who is let in, what is shed."""

"""The admin API: what an operator sees of the connections that live now, and does to them."""

"""`trio-odin top`: what the admin API shows, on a terminal, as long as somebody looks."""

"""Every setting of the server: names, values, files, and reloads."""

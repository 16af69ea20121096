"""Every setting of the server: names, values, files, and what a reload takes on."""

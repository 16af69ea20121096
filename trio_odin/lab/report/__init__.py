"""A run of the lab as a folder: a verdict for programs, a page for people, and the series."""

"""What is under ops/, checked; and, marked `ops`, started with the real components."""

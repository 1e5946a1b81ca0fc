"""What is to be done, and what became of it."""

"""What to run: cells, their identities, and the time that a plan will take."""

"""Diagnosis: what papers claim about their synthetic images, measured for every method in the same way."""

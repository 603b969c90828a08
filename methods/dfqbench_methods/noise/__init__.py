"""Gaussian noise as images: a lower bound."""

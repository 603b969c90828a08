"""Evaluation sets and the networks that have weights for them."""

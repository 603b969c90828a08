"""Comparison of two methods image by image."""

"""The floor: images that are Gaussian noise."""

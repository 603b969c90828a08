"""Random images as controls: noise, a lower bound, and fractals."""

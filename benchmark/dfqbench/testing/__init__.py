"""For tests of plugins: toy networks, and a context without a host."""

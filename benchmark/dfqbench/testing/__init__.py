"""For tests of plugins: toy networks, a context without a host, and the conformance checks."""

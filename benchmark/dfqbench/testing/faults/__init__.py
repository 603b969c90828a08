"""The fault harness: sweeps that are killed, starved and lied to, and what is left of them.

Run it with `python -m dfqbench.testing.faults`. Nothing of it is loaded in an ordinary run.
"""

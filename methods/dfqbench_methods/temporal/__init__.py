"""Temporal diversity: a generator that is kept challenging by a Gaussian margin (Luo et al., TCSVT 2024)."""

"""Temporal diversity: GDFQ with a Gaussian margin between teacher and student (Luo et al., TCSVT 2024)."""

"""ACQ: GDFQ with an attention-centre condition (Li et al., Pattern Recognition 2024)."""

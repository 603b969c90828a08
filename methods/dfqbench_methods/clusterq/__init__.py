"""ClusterQ: GDFQ with class centroids of deep BatchNorm-input statistics (Gao et al., ICDM 2022)."""

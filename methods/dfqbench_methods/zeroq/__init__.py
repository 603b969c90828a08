"""ZeroQ: images distilled from BatchNorm statistics (Cai et al., CVPR 2020)."""

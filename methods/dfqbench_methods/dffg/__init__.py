"""DFFG: images by momentum sign-gradient steps on BatchNorm statistics (Leng et al., BMVC 2023)."""

"""GDFQ: a class-conditional generator, trained with the student (Xu et al., ECCV 2020)."""

"""Pictures: grids of synthetic images, by class, with the teacher's confidence; needs no torch."""

"""Several processes on one run: their events, SLURM jobs, and the view of all of them."""

"""Speed as ratios within one run: our steps beside textbook loops and beside the bare networks."""

"""Running a grid: plan, workers, evaluation, clock, data guard and the store of records."""

"""The report: one HTML page that holds everything, reads without a script and needs no network."""

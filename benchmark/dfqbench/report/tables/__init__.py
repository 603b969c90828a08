"""Tables of records: labels, rows and columns, aggregation over seeds, and the caption."""

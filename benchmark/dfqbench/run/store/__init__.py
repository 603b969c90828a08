"""What a run keeps on disk: records, sources, students, states, environments."""

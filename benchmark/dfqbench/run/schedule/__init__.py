"""Which cell runs when: the queue, the slots of a machine, and a cell from its plan to its record."""

"""Records as a DataFrame: one row per attempt, nested keys as dotted columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.report.record_access import flattened
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import DEFAULT_OUT, read_records

if TYPE_CHECKING:
    import pandas as pd


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return records as a table with columns such as `method`, `model.ref`, `seconds.synthesis`; lists stay lists."""
    import pandas as pd

    return pd.DataFrame([flattened(record.as_dict()) for record in records])


def records(path: Path | str = DEFAULT_OUT) -> pd.DataFrame:
    """Return every readable record at a path as a table, one row an attempt.

    Args:
        path: a run's folder or a folder of runs.

    Raises:
        InputError: there is no run.
    """
    return frame(read_records(Path(path))[0])

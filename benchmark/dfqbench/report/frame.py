"""Records as a DataFrame: one row a record, nested keys as dotted columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dfqbench.report.values import flattened

if TYPE_CHECKING:
    import pandas as pd


def frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Turns records into a table.

    Args:
        records: as in the record files; every attempt is a row.

    Returns:
        Columns such as `method`, `model.ref`, `seconds.synthesis`; lists stay lists.
    """
    import pandas as pd

    return pd.DataFrame([flattened(record) for record in records])

from __future__ import annotations

import pytest
import torch

from dfqbench.api import NonFiniteError
from dfqbench.synth import NonFiniteCheck


def test_non_finite_check_names_the_first_bad_step() -> None:
    check = NonFiniteCheck("toy loss", torch.device("cpu"))
    for step in range(1, 50):
        check.step(torch.tensor(float("nan") if step in (7, 9) else 1e30), step)
        assert step >= 7 or check.check() is None  # type: ignore[func-returns-value]
    with pytest.raises(NonFiniteError, match="toy loss is not finite at step 7") as caught:
        check.step(torch.tensor(1.0), 50)
    assert caught.value.step == 7

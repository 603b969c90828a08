"""Is a script at heart: leaves Python while it is imported."""

from __future__ import annotations

import sys

sys.exit(3)

from __future__ import annotations

import sys
from pathlib import Path

# The suite imports test files by path; this room's helper is imported by name.
sys.path.insert(0, str(Path(__file__).parent))

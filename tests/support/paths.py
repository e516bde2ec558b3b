"""Where the project and what tests read lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDINGS = Path(__file__).parent / "recordings"

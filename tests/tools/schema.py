"""Write the schema of paths into docs/path.schema.json: python -m tests.tools.schema."""

import json

from nftproxy.path.model import schema
from tests.support.paths import ROOT

FILE = ROOT / "docs" / "path.schema.json"


def text() -> str:
    """Return the schema as it stands in docs/."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())

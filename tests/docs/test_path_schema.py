"""docs/path.schema.json: what `explain --output json` prints, for scripts.

It follows from the model, and real answers keep to it.

python -m tests.docs.test_path_schema       writes it anew
"""

import json
from typing import Any

import jsonschema
import msgspec
import pytest

from nftproxy.path import model
from nftproxy.path.model import Path
from tests.support.paths import ROOT

FILE = ROOT / "docs/path.schema.json"


def expected() -> dict[str, Any]:
    schema = msgspec.json.schema(Path)
    schema["$defs"]["Path"]["properties"]["version"] = {"const": model.VERSION}
    schema["$defs"]["Path"]["required"] = sorted(schema["$defs"]["Path"]["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A path, version {model.VERSION}",
        "description": "What nftproxy explain --output json prints. Fields may be added; one that "
        "changes its meaning or goes raises the version.",
        **schema,
    }


def test_the_file_follows_from_the_model() -> None:
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(expected()))


@pytest.mark.parametrize("change", [{"version": 2}, {"reach": "perhaps"}, {"steps": [{}]}])
def test_the_schema_refuses_what_is_no_path(change: dict[str, Any]) -> None:
    path = Path(
        model.Origin.COMPUTED, model.Target("a/b"), model.Client("", "node"), model.Reach.NO
    )
    document = json.loads(model.to_json(path))
    jsonschema.validate(document, json.loads(FILE.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, **change}, json.loads(FILE.read_text()))
    assert model.of_json(model.to_json(path)) == path


if __name__ == "__main__":
    FILE.write_text(json.dumps(expected(), indent=2) + "\n")

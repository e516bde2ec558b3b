"""The bill of materials of an image, in CycloneDX's JSON: `make sbom`.

    python -m release.sbom build/image/image build/nftproxy.cdx.json

Lists what is in the folder of a built image: Python's packages by their own metadata, Debian's by
dpkg's. Its time is that of the image, and its number follows from its content, so an image has the
same bill each time.
"""

import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from release.licences import stated

_SCHEMA = SchemaVersion.V1_6


def python_packages(site: Path) -> Iterator[Component]:
    """Yield what is installed in a site-packages folder."""
    factory = LicenseFactory()
    for found in metadata.distributions(path=[str(site)]):
        name = found.name.lower().replace("_", "-")
        said = stated(found.metadata.json)
        component = _component(PackageURL("pypi", None, name, found.version))
        if said:
            component.licenses.add(factory.make_from_string(said))
        yield component


def debian_packages(root: Path) -> Iterator[Component]:
    """Yield what dpkg has installed in a root. Licences are missing.

    Debian states them as prose.
    """
    release = dict(
        line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if line
    )
    distribution = "-".join(release[name].strip('"') for name in ("ID", "VERSION_ID"))
    for block in (root / "var/lib/dpkg/status").read_text(encoding="utf-8").split("\n\n"):
        fields = HeaderParser().parsestr(block)
        if fields["Status"] == "install ok installed":
            qualifiers = {"arch": fields["Architecture"], "distro": distribution}
            yield _component(
                PackageURL("deb", "debian", fields["Package"], fields["Version"], qualifiers)
            )


def bill(root: Path) -> str:
    """Return the bill of the image in a folder; ValueError if it is not valid CycloneDX."""
    (site,) = root.glob("opt/nftproxy/lib/python3*/site-packages")
    components = [*python_packages(site), *debian_packages(root)]
    (own,) = (each for each in components if each.name == "nftproxy")
    others = [each for each in components if each is not own]
    own.type = ComponentType.APPLICATION
    (made,) = site.glob("nftproxy-*.dist-info")
    about = BomMetaData(
        component=own, timestamp=datetime.fromtimestamp(int(made.stat().st_mtime), UTC)
    )
    content = "\n".join(sorted(each.bom_ref.value or "" for each in components))
    bom = Bom(
        components=others, metadata=about, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, content)
    )
    bom.register_dependency(own, others)
    text = make_outputter(bom, OutputFormat.JSON, _SCHEMA).output_as_string(indent=1)
    if error := JsonStrictValidator(_SCHEMA).validate_str(text):
        raise ValueError(f"not a valid bill: {error}")
    return text + "\n"


def main() -> None:
    """Write the bill of the image in the folder named to the file named."""
    root, output = map(Path, sys.argv[1:])
    output.write_text(bill(root), encoding="utf-8")
    print(f"{output}: what is in {root}")


def _component(purl: PackageURL) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=purl.name,
        version=purl.version,
        purl=purl,
        bom_ref=purl.to_string(),
    )


if __name__ == "__main__":
    main()

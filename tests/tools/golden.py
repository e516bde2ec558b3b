"""Write the golden files of tests/cases: python -m tests.tools.golden.

Look at the difference before you commit it.
"""

from tests.support.cases import CASES, WRITTEN, golden


def main() -> None:
    """Write the files of all cases, and remove those that no longer belong there."""
    for case in CASES:
        files = golden(case).files
        for name in WRITTEN:
            path = case / name
            if name in files:
                path.write_text(files[name])
            else:
                path.unlink(missing_ok=True)
    print(f"{len(CASES)} cases written; git diff tests/cases shows what changed")


if __name__ == "__main__":
    main()

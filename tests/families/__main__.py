"""What is known of every family of vision-language models in transformers: `python -m tests.families [--out FILE]`.

The table says what the tests hold, family by family; it measures nothing itself, so that it is made in a second and a
test can keep it current.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.families.table import render


def main() -> None:
    """Write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the table here; default: print it")
    options = parser.parse_args()
    if options.out is None:
        print(render(), end="")
    else:
        options.out.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()

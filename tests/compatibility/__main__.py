"""Check releases of transformers and write the table: `python -m tests.compatibility [RELEASE...] [--out FILE]`.

Each release is installed from the package index into a virtual environment that reads everything else, torch above all,
from the present one. The release of the present environment is checked where it is. They run side by side, on a core
each. Exit status 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.compatibility.table import render, wrong

ROOT = Path(__file__).resolve().parents[2]
#: The oldest release that is supported, and an early one of the present major version.
OLDER = ("4.57.6", "5.2.0")


def main() -> int:
    """Check, render, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("releases", nargs="*", help=f"default: {' '.join(OLDER)} and the installed one")
    parser.add_argument("--out", type=Path, help="write the table here; default: print it")
    options = parser.parse_args()
    releases = options.releases or [*OLDER, metadata.version("transformers")]
    with ThreadPoolExecutor(os.cpu_count()) as cores:
        results = [found for found in cores.map(_findings, releases) if found is not None]
    if not results:
        return 0
    table = render(results)
    if options.out is None:
        print(table)
    else:
        options.out.write_text(table, encoding="utf-8")
    for line in wrong(results):
        print(f"wrong: {line}", file=sys.stderr)
    return int(bool(wrong(results)))


def _findings(release: str) -> dict[str, Any] | None:
    """What was found of a release; None where it cannot be installed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        installed = release == metadata.version("transformers")
        python = sys.executable if installed else _environment(Path(folder), release)
        if python is None:
            print(f"transformers {release}: not checked, the package index does not give it", file=sys.stderr)
            return None
        found = _checked(python, Path(folder) / "findings.json")
    print(f"transformers {release}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def _environment(folder: Path, release: str) -> str | None:
    """The interpreter of an environment with this release in front of all that is installed here; None where it
    cannot be installed."""
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    (own,) = (folder / "env").glob("lib/python*/site-packages")
    # Not --system-site-packages, which from within a virtual environment would reach past it.
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "present.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in here))
    done = subprocess.run([python, "-m", "pip", "install", "-q", f"transformers=={release}"])
    return None if done.returncode else python


def _checked(python: str, destination: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "tests.compatibility.checks", str(destination)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    return json.loads(destination.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())

"""A headless Chromium, where one is installed: what a page holds once its scripts have run, and how it looks."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
#: No network, no first-run pages, no sandbox (tests may run as root in a container).
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def run_page(page: Path) -> tuple[str, list[str]]:
    """The page's HTML after its scripts, and what it wrote to the console."""
    done = _run("--virtual-time-budget=60000", "--window-size=1400,900", "--dump-dom", page.as_uri())
    return done.stdout, re.findall(r"INFO:CONSOLE\S*\s*(.*)", done.stderr)


def fonts() -> str:
    """What text measures here in the fonts of the pages: equal where pages break their lines alike."""
    page = """<!doctype html><pre id="widths"></pre><script>
      const pen = document.createElement("canvas").getContext("2d");
      const measured = ["100px system-ui", "600 100px system-ui", "100px sans-serif", "100px monospace"].map((font) => {
        pen.font = font;
        return pen.measureText("Kept patches, 99.5 %").width.toFixed(0);
      });
      document.getElementById("widths").textContent = measured.join(" ");
    </script>"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fonts.html"
        path.write_text(page, encoding="utf-8")
        return text_within(run_page(path)[0], "widths")


def text_within(dom: str, element: str) -> str:
    """The text of the element with an id that has no elements in it."""
    found = re.search(rf'id="{element}"[^>]*>([^<]*)<', dom)
    assert found is not None, f"no element {element}"
    return html.unescape(found[1])


def screenshot(address: str, picture: Path, width: int, height: int, dark: bool = False) -> None:
    """The upper part of a page as a PNG."""
    face = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    size = f"--window-size={width},{height}"
    _run(face, size, "--virtual-time-budget=20000", f"--screenshot={picture}", address)

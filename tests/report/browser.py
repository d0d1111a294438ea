"""A real headless browser: what a page shows and what it logs."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


def browse(page: Path, script: str, folder: Path) -> tuple[dict, list[str]]:
    """Open a copy of `page` that also runs `script`, the body of a function; returns its result and the console."""
    probe = f'<pre id="probe"></pre><script>probe.textContent = JSON.stringify((() => {{ {script} }})())</script>'
    copy = folder / "probed.html"
    copy.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.DOTALL)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert found, console or result.stderr[-2000:]
    return json.loads(html.unescape(found[1]) or "{}"), console

"""Build the documentation as a site in ``build/site``; end with an error at the first warning.

Pages keep the places that they have in the repository, so a link means the same here, there and in a text editor.
What they link to and is no page, as a picture or an example, is copied beside them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
PARTS = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "docs/**/*",
    "benchmarks/predictions/*",
    "benchmarks/results/*",
    "examples/**/*",
)


def on_site() -> list[Path]:
    """The files of the repository that are on the site."""
    found = [path for part in PARTS for path in sorted(ROOT.glob(part))]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def main() -> int:
    """Copy the pages and what they link to, and have mkdocs build the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in on_site():
        copy = PAGES / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

"""Make the pictures of the pages: run each page's code, and keep what it saves as docs/images/PAGE_NAME.png."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

for page in sorted(DOCS.rglob("*.md")):
    code = "\n".join(PYTHON.findall(page.read_text(encoding="utf-8")))
    if "savefig(" not in code:
        continue
    with tempfile.TemporaryDirectory() as folder:
        quiet = {**os.environ, "MPLBACKEND": "Agg"}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=quiet, check=True)
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, DOCS / "images" / f"{page.stem}_{picture.name}")

"""A notebook kept as a script of cells ("py:percent"), executed, as the MyST text of a page.

Pictures and the notebook itself are written beside; what a cell writes to stderr, warnings too, is an error.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

__all__ = ["page"]

# no progress bars on a page, no advice on how to get them, and one thread for small work
_QUIET = {
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "OMP_NUM_THREADS": "1",
}


def page(path: Path, folder: Path) -> str:
    """Execute the notebook at ``path``; the executed one and its pictures go to ``folder``."""
    book = jupytext.read(path)
    # by way of files: a build opens no port
    with tempfile.TemporaryDirectory() as sockets:
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        client = NotebookClient(book, kernel_name="python3", timeout=600, config=config)
        client.execute(env={**os.environ, **_QUIET})
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / f"{path.stem}.ipynb")
    near = Path(os.path.relpath(folder, path.parent)).as_posix()
    text = []
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            text.append(cell.source)
        elif cell.cell_type == "code":
            text += [
                f"```python\n{cell.source}\n```",
                *_outputs(cell, f"{near}/{path.stem}_{number}", path),
            ]
    text.append(f"{{download}}`This page as a notebook <{near}/{path.stem}.ipynb>`")
    return "\n\n".join(text)


def _outputs(cell: nbformat.NotebookNode, name: str, path: Path) -> Iterator[str]:
    """What a cell showed, best form first: a picture, HTML, text."""
    drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
    for number, output in enumerate(cell.outputs):
        if output.get("name") == "stderr":
            raise RuntimeError(f"{path}: a cell wrote to stderr: {output.text}")
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            file = f"{name}_{number}.png"
            (path.parent / file).write_bytes(base64.b64decode(data["image/png"]))
            yield f"![]({file})"
        elif "text/html" in data:
            yield f"```{{raw}} html\n<div class='output'>{data['text/html']}</div>\n```"
        elif (
            output.output_type == "stream" or not drawn
        ):  # beside a picture, what a plot returns
            yield f"```text\n{data['text/plain'].rstrip()}\n```"

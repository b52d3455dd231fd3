"""Unpack llama.cpp's own converter from the source of the installed llama-cpp-python.

usage: fetch_converter.py FOLDER

The wheel that pip builds has none; the source package carries all of llama.cpp (MIT). It is what
conversion is compared with, never part of quantkit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

WANTED = ("convert_hf_to_gguf.py", "conversion", "gguf-py", "LICENSE")


def main() -> None:
    target = Path(sys.argv[1])
    package = f"llama-cpp-python=={version('llama-cpp-python')}"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", "llama-cpp-python", "-d", scratch, package]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(scratch, filter="data")
        (root,) = Path(scratch).glob("*/vendor/llama.cpp")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in WANTED:
            shutil.move(root / name, target / name)
    print(f"{target}: llama.cpp's converter from {package}")


if __name__ == "__main__":
    main()

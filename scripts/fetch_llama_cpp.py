"""Unpack llama.cpp from the source of the installed llama-cpp-python.

usage: fetch_llama_cpp.py FOLDER

The wheel that pip builds carries libraries only; the source package carries all of llama.cpp (MIT).
Its converter and its programs are what quantkit is compared with, never part of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
PROGRAMS = (
    "CMakeLists.txt", "cmake", "common", "ggml", "include", "scripts", "src", "tools", "vendor",
)  # fmt: skip
NOTICES = ("LICENSE", "licenses", "AUTHORS")
"""What is left out is vocabularies, documents and tests: two thirds of it."""


def main() -> None:
    target = Path(sys.argv[1])
    package = f"llama-cpp-python=={version('llama-cpp-python')}"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-P", "-m", "pip", "download", "-q", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-binary", "llama-cpp-python"]
        command += ["-d", scratch, package]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(scratch, filter="data")
        (root,) = Path(scratch).glob("*/vendor/llama.cpp")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in (*CONVERTER, *PROGRAMS, *NOTICES):
            shutil.move(root / name, target / name)
    print(f"{target}: llama.cpp from {package}")


if __name__ == "__main__":
    main()

"""Keeps files of the current folder from being imported, loaded or started.

quantkit runs where a model lies, and that folder may be anybody's: a file `numpy.py`, `cc` or
`libgomp.so.1` in it must not run. Nothing that such a file could replace is imported here.
"""

import os
import sys


def without_empty_entries(python_path: str) -> str:
    """PYTHONPATH without what Python takes for the current folder.

    `export PYTHONPATH=$PYTHONPATH:/mine` has such an entry where nothing was set before. A folder
    that is named stays, also where it is the current one.
    """
    return os.pathsep.join(filter(None, python_path.split(os.pathsep)))


def _absolute_entries(search_path: str) -> str:
    return os.pathsep.join(filter(os.path.isabs, search_path.split(os.pathsep)))


def start_again_without_local_libraries() -> None:
    """Start anew if the current folder is on the loader's path, which is read at a start.

    `export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/local/cuda/lib64` puts it there where nothing was
    set before.
    """
    given = os.environ.get("LD_LIBRARY_PATH", "")
    if given != (named := _absolute_entries(given)):
        os.environ["LD_LIBRARY_PATH"] = named
        os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])


def leave_out_current_folder() -> None:
    """Import nothing from the current folder, in this process and in those that it starts.

    Nor is a program started that lies there, as a compiler.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PATH"] = _absolute_entries(os.environ.get("PATH", os.defpath))
    given = os.environ.get("PYTHONPATH", "")
    named = without_empty_entries(given)
    if named != given:
        os.environ["PYTHONPATH"] = named
        here = {"", os.getcwd()} - set(named.split(os.pathsep))
        sys.path[:] = [folder for folder in sys.path if folder not in here]

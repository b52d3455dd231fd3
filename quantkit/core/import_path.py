"""Keeps files of the current folder from being imported.

quantkit runs where a model lies, and that folder may be anybody's: a file `numpy.py` in it must not
run. Nothing that such a file could replace is imported here.
"""

import os
import sys


def without_empty_entries(python_path: str) -> str:
    """PYTHONPATH without what Python takes for the current folder.

    `export PYTHONPATH=$PYTHONPATH:/mine` has such an entry where nothing was set before. A folder
    that is named stays, also where it is the current one.
    """
    return os.pathsep.join(filter(None, python_path.split(os.pathsep)))


def leave_out_current_folder() -> None:
    """Import nothing from the current folder, in this process and in those that it starts."""
    os.environ["PYTHONSAFEPATH"] = "1"
    given = os.environ.get("PYTHONPATH", "")
    named = without_empty_entries(given)
    if named != given:
        os.environ["PYTHONPATH"] = named
        here = {"", os.getcwd()} - set(named.split(os.pathsep))
        sys.path[:] = [folder for folder in sys.path if folder not in here]

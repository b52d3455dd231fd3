"""`python -m quantkit` is `quantkit`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, which `-m` puts there
    from quantkit.cli.app import main

    main()

"""What each command does and prints, one file a command; `cli.py` parses."""

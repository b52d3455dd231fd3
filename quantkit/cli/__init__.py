"""The command line: each Typer function is a command; it parses, calls one function and prints."""

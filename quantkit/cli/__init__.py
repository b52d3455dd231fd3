"""The command line: each Typer function is a command; it parses, calls one function and prints."""

from quantkit.core.import_path import leave_out_current_folder

leave_out_current_folder()  # before a command's module imports anything

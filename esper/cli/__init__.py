"""The command line, and everything that people see on a terminal. The only room that imports rich and typer."""

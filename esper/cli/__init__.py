"""The command line and all terminal output. The only room that imports rich and typer."""

"""`hone tune`."""

import typer

tune = typer.Typer()

"""The command line as an object, where ``python -m typer`` looks for it."""

from spectok.cli import build_app

app = build_app()

"""`python -m service` is `tonearm serve`."""

import typer

from service.command import serve

# The worker is spawned and imports this module again under another name.
if __name__ == "__main__":
    typer.run(serve)

"""Command-line arguments that several verbs take."""

from __future__ import annotations

import argparse


def add_uri(parser: argparse.ArgumentParser) -> None:
    """Add the option --uri, the MLflow tracking store that contains the named runs."""
    parser.add_argument(
        "--uri", help="MLflow tracking store (default: MLFLOW_TRACKING_URI, or this place's SQLite file)"
    )


def positive(text: str) -> int:
    """Parse a whole number of 1 or more, as an argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more. Received: {text!r}")
    return int(text)

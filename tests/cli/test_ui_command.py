"""`experiments ui` before it serves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import ui


def test_a_port_that_cannot_be_served_is_named(tmp_path: Path, run_verb: Callable[..., None]) -> None:
    """MLflow's server goes on without one, and the addresses are those of another program."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port, reason in ((other.getsockname()[1], "Address already in use"), (80000, "ports end at 65535")):
            with pytest.raises(SystemExit, match=f"^--port {port}: {reason}. Give another one"):
                run_verb(ui, "--port", port, "--uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir()), "nothing is written before"

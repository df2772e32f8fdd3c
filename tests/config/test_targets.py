"""The code of the user's packages, as caches are keyed by it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from experiments.config import targets
from experiments.config.targets import own_code, resolve

PLAIN = {"augmentation": {"_target_": "own_mixer.brightness", "layers": [{"_target_": "own_layers.deep.Noise"}]}}


def test_own_code_is_that_of_the_packages_that_targets_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_layers").mkdir()
    files = [tmp_path / "own_mixer.py", tmp_path / "own_layers" / "__init__.py", tmp_path / "own_layers" / "deep.py"]
    for file in files:
        file.write_text("factor = 1\n")
    trusted = ["own_mixer", "own_layers", "own_other"]

    def hashed() -> str:
        targets._hashed.clear()  # as in another process
        return str(own_code(trusted, PLAIN))

    found = [hashed()]
    for file in files:
        file.write_text("factor = 2\n")
        found.append(hashed())
    assert len(set(found)) == 4
    files[0].write_text("factor = 3\n")
    assert str(own_code(trusted, PLAIN)) == found[-1], "of the code that this process has imported"
    assert own_code(trusted, {"model": {"_target_": "keras.applications.VGG16"}}) == own_code([], PLAIN) == {}


def test_own_code_is_that_which_was_imported_or_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its files would hide edits within a second
    file, trusted, plain = tmp_path / "own_filter.py", ["own_filter"], {"_target_": "own_filter.factor"}

    def write(factor: int) -> dict[str, list[str]]:
        file.write_text(f"def factor():\n    return {factor}\n")
        targets._hashed.clear()
        return own_code(trusted, plain)  # as another process has it

    first, second = write(1), write(2)
    write(1)
    assert resolve(trusted, "augmentation", "own_filter.factor")() == 1
    file.write_text("def factor():\n    return 2\n")
    assert resolve(trusted, "augmentation", "own_filter.factor")() == 1
    assert own_code(trusted, plain) == first, "although its first use is after the edit"
    importlib.reload(sys.modules["own_filter"])
    assert resolve(trusted, "augmentation", "own_filter.factor")() == 2
    assert own_code(trusted, plain) == second

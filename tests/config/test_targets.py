"""The code of the user's packages, as caches are keyed by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config.targets import _source_hash, own_code

PLAIN = {"augmentation": {"_target_": "own_mixer.brightness", "layers": [{"_target_": "own_layers.deep.Noise"}]}}


def test_own_code_is_that_of_the_packages_that_targets_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_layers").mkdir()
    files = [tmp_path / "own_mixer.py", tmp_path / "own_layers" / "__init__.py", tmp_path / "own_layers" / "deep.py"]
    for file in files:
        file.write_text("factor = 1\n")
    trusted = ["own_mixer", "own_layers", "own_other"]

    def hashed() -> str:
        _source_hash.cache_clear()  # as in another process
        return str(own_code(trusted, PLAIN))

    found = [hashed()]
    for file in files:
        file.write_text("factor = 2\n")
        found.append(hashed())
    assert len(set(found)) == 4
    files[0].write_text("factor = 3\n")
    assert str(own_code(trusted, PLAIN)) == found[-1], "of the code that this process has imported"
    assert own_code(trusted, {"model": {"_target_": "keras.applications.VGG16"}}) == own_code([], PLAIN) == {}

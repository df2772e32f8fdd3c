"""The repository itself: portable, self-describing, free of what belongs to one machine."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import experiments

ROOT = Path(__file__).resolve().parent.parent
# Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~/}-])/(?:work|root|home|opt)/[\w.-]")
FILE_INDEX = re.compile("file:" + r"///[\w.-]")
# An extra of ours, or a requirement of ours after an installing command, in prose, commands and patterns of tests.
EXTRA = re.compile(r"(?<![\w.-])([\w-]*experiments)" + r"\\?\[\{?(\w+)\}?\\?\]")
REQUIREMENT = re.compile(r"(?:(?<!un)install|add|--from|--with)\s+['\"]?([\w-]*experiments)\b(?![/.])")


def tracked() -> list[Path]:
    """Files that git tracks; skips the test where this is no checkout."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_lock_file_names_no_host_but_the_public_index() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert {urlsplit(url).hostname for url in re.findall(r"\w+://[^\s\"']+", text)} == {
        "pypi.org", "files.pythonhosted.org"}  # fmt: skip
    sources = [package["source"] for package in tomllib.loads(text)["package"]]
    places = [source for source in sources if source != {"registry": "https://pypi.org/simple"}]
    assert places == [{"editable": "."}], "besides the index only this project, by its relative place"
    assert not MACHINE_PATH.search(text) and "file:" not in text


def test_the_lock_file_belongs_to_this_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    (ours,) = [package for package in lock["package"] if package["name"] == project["name"]]
    assert "version" not in ours, "it stands in src/experiments/__init__.py alone"
    named = {re.split(r"[\s\[<>=!~]", requirement)[0].lower() for requirement in project["dependencies"]}
    assert {dependency["name"] for dependency in ours["dependencies"]} == named
    assert sorted(ours["optional-dependencies"]) == sorted(project["optional-dependencies"])


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # weights
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line) or FILE_INDEX.search(line)
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text, is_place", [
    ("uv = '/ro" + "ot/.local/bin/uv'", True), ("PATH=/wo" + "rk/main", True), ("(/ho" + "me/me/x)", True),
    ("index = file:" + "///srv/simple", True), ("../shared/DESIGN.md and src/work/x", False),
    ("https://host/home/page", False), ("the root/branch", False), ("sqlite:///${outputs}/mlflow.db", False),
])  # fmt: skip
def test_the_search_for_places_finds_them_and_only_them(text: str, is_place: bool) -> None:
    assert bool(MACHINE_PATH.search(text) or FILE_INDEX.search(text)) == is_place


def test_make_help_explains_every_target() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = dict(re.findall(r"^  make (\S+) +(\S.+)$", done.stdout, re.MULTILINE))
    assert sorted(shown) == sorted(phony.split()), "`make` alone is `make help`"
    required = "help install demo train test test-slow check ui golden pretrained clean"
    assert set(required.split()) <= set(shown)


def test_the_installed_distribution_has_the_version_of_the_package() -> None:
    assert importlib.metadata.version("image-experiments") == experiments.__version__
    scripts = importlib.metadata.distribution("image-experiments").entry_points.select(group="console_scripts")
    assert [script.name for script in scripts] == ["experiments"]


def test_messages_and_pages_name_no_other_distribution() -> None:
    """The name `experiments` on the public index belongs to another project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, names = set(), {project["name"]}
    for path in tracked():
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".ipynb", ".j2"):
            text = path.read_text(encoding="utf-8")
            found = EXTRA.findall(text)
            extras |= {extra for _, extra in found}
            names |= {name for name, _ in found} | set(REQUIREMENT.findall(text))
    assert names == {"image-experiments"}
    assert {"search", "slurm", "heif"} <= extras <= {*project["optional-dependencies"], "launcher", "name", "extra"}


@pytest.mark.parametrize("text", [
    "pip install 'experi" + "ments[ray]'", "'experi" + r"ments\[search\]'", "experi" + "ments[{launcher}]",
    "pip install experi" + "ments", "uvx --from experi" + "ments experiments train",
])  # fmt: skip
def test_the_search_for_distributions_finds_other_names(text: str) -> None:
    assert [*EXTRA.findall(text), *REQUIREMENT.findall(text)]
    assert "image-" not in text


def test_the_licence_is_mit() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "MIT" and text.startswith("MIT License\n")
    assert "without restriction" in text and 'PROVIDED "AS IS"' in text


def test_outputs_is_kept_and_ignored() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in tracked() if ROOT / "outputs" in path.parents] == [
        "outputs/.gitkeep"
    ]
    done = subprocess.run(
        ["git", "check-ignore", "outputs/runs/x", "outputs/.gitkeep"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["outputs/runs/x"]


def test_continuous_integration_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "it can be executed"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[-3:] == ["make check &", "make test", "wait $!"], "both have to pass"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_yaml_describes_itself(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[0].startswith("# @package"):
        lines = lines[1:]
    assert re.match(r"# \w.{15,}", lines[0]), f"{path.name}: its first line is a comment that says what it is"
    if path.parent.name == "experiment":
        commands = [line for line in lines if line.startswith(("# python -m experiments", "# make "))]
        assert commands, "a preset's header has its command"
        assert any(path.stem in command for command in commands)

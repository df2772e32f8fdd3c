"""The documentation: the site builds without warnings, and every page is reachable from its index."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
# [text](path#anchor) and ![text](path), but not addresses on the web
LINK = re.compile(r"\]\((?!\w+://|mailto:)([^)#\s]*)(?:#([\w-]+))?\)")


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.stem)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name}: {path}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {path}#{anchor}"


def test_every_page_is_in_the_index_and_in_the_readme() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^([a-z_]+)$", index, re.MULTILINE)) == [page for page in PAGES if page != "index"]
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert not [page for page in PAGES if page != "index" and f"(docs/{page}.md)" not in readme]
    assert len(readme.splitlines()) <= 200


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "search.html").exists() and (tmp_path / "html" / "your_data.html").exists()
    reference = (tmp_path / "html" / "python.html").read_text(encoding="utf-8")
    assert [name for name in experiments.__all__ if f'id="experiments.{name}"' not in reference] == []

"""The pages say what the code does, and lead somewhere."""

from __future__ import annotations

import json
import re
import tomllib
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr

from taskyard import hookspecs
from taskyard.cli import CORE
from taskyard.lifecycle import TRANSITIONS, Status
from taskyard.plugins import load_plugins
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api.app import create_app
from taskyard_api.problems import INTERNAL, INVALID, KINDS

from .markdown import PAGES, ROOT, anchors, blocks, names, prose, rows

DOCS = ROOT / "docs"
LIFECYCLE = DOCS / "lifecycle.md"
REST = DOCS / "reference" / "rest.md"


# --- a task's life ---


def _drawn() -> set[tuple[str, str, str]]:
    """(from, to, verb) of each arrow in the picture."""
    (picture,) = blocks(LIFECYCLE, "mermaid")
    arrows = re.findall(r"^\s*(\S+) --> (\S+?)(?:: (.*))?$", picture, re.MULTILINE)
    return {(old, new, verb) for old, new, verbs in arrows for verb in (verbs.split(", ") if verbs else [""])}


def test_the_state_picture_shows_each_move_of_the_code_and_no_other() -> None:
    moves = {(old, new, verb) for verb, table in TRANSITIONS.items() for old, news in table.items() for new in news}
    ends = {("[*]", "pending", "submit"), ("[*]", "scheduled", "submit"), ("succeeded", "[*]", "")}
    assert _drawn() == moves | ends


def test_every_status_and_every_verb_is_explained() -> None:
    assert {name for row in rows(LIFECYCLE, "# A task's life") for name in names(row[0])} == set(get_args(Status))
    assert {name for row in rows(LIFECYCLE, "## The verbs") for name in names(row[0])} == {"submit", *TRANSITIONS}


# --- reference ---


def test_every_hook_is_in_the_reference_with_its_arguments() -> None:
    specified = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("taskyard_")}
    written = re.findall(r"^## `(.*)`$", (DOCS / "reference" / "hooks.md").read_text(), re.MULTILINE)
    assert written == [f"{name}({', '.join(signature(spec).parameters)})" for name, spec in specified.items()]


def test_every_call_of_the_api_is_in_the_reference() -> None:
    settings = Settings(database=DatabaseSettings(url=SecretStr("postgresql://localhost/unused")))
    paths = create_app(settings, load_plugins()).openapi()["paths"]
    served = {f"{method.upper()} {path.removeprefix('/api/v1')}" for path, methods in paths.items() for method in methods}
    listed = [names(row[0])[0] for row in rows(REST, "## Calls")]
    assert {*listed, *re.findall(r"`(GET /(?:health/\w+|metrics))`", REST.read_text())} == served


def test_every_problem_is_in_the_reference() -> None:
    listed = [(names(row[0])[0], int(row[1])) for row in rows(REST, "## Problems")]
    # A wrong method is told by the router, not by an error of ours.
    known = {(kind.slug, kind.status) for kind in [*KINDS.values(), INTERNAL]} | {(INVALID.slug, 405)}
    assert set(listed) == known
    assert len(listed) == len(known)


# --- pages ---


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def test_the_index_leads_to_every_page() -> None:
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text())}
    assert {page for page in DOCS.rglob("*.md") if page.name != "index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_data_in_pages_can_be_parsed(page: Path) -> None:
    for text in blocks(page, "toml"):
        tomllib.loads(text)
    for text in blocks(page, "json"):
        json.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    known = {*CORE, "serve", "worker", "dispatcher", "db"}
    for first in re.findall(r"\btaskyard ([a-z]+(?:-[a-z]+)*)\b", "\n".join([*blocks(page, "sh"), *re.findall(r"`([^`\n]+)`", prose(page))])):
        assert first in known, f"{page.name}: taskyard {first}"


def test_the_readme_lists_every_folder() -> None:
    listed = {names(row[0])[0].rstrip("/") for row in rows(ROOT / "README.md", "## How it works")}
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_")) and path.name not in ("dist", "build")}
    assert there == listed


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets

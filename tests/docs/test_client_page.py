"""The page of the Python client names all that the client has."""

from __future__ import annotations

import re

from taskyard.client import Client, ClientError, Problem

from .markdown import ROOT, names, rows

PAGE = ROOT / "docs" / "reference" / "client.md"


def test_every_call_is_on_the_page_and_no_other() -> None:
    there = {name for name in dir(Client) if not name.startswith("_")} - {"url"}
    listed = {re.split(r"[( ]", name)[0] for row in rows(PAGE, "## Calls") for name in names(row[0])}
    assert listed == there


def test_every_error_is_on_the_page_with_its_slug() -> None:
    general = {names(row[0])[0] for row in rows(PAGE, "## Errors")}
    assert general == {kind.__name__ for kind in ClientError.__subclasses__()}
    problems = {names(row[1])[0]: names(row[0])[0] for row in rows(PAGE, "`retry_after` |\n\n")}
    assert problems == {slug: kind.__name__ for slug, kind in Problem.slugs.items()}

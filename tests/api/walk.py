"""Every call that an application answers, read from its routes: a test that walks them meets a new one by itself."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts


def calls(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path with its parameters in braces) of every route, those that OpenAPI does not show too. Where GET is, so is HEAD (edge.py).

    What has no methods, a mounted application or a WebSocket, is asked by GET at its own address and below it.
    """
    for route in iter_route_contexts(app.router.routes):
        assert route.path is not None, f"{route.original_route!r} has no path: say here how it is asked"
        methods = getattr(route, "methods", None)
        if not methods:
            yield from (("GET", route.path), ("GET", f"{route.path}/anything"))
            continue
        for method in sorted({*methods, "HEAD"} if "GET" in methods else methods):
            yield method, getattr(route, "path_format", route.path)


def parameters(path: str) -> list[str]:
    """The names in braces."""
    return [part[1:-1].partition(":")[0] for part in path.split("/") if part.startswith("{")]


def address(path: str, values: dict[str, str]) -> str:
    """A path with values in the place of its parameters."""
    return "/".join(values[part[1:-1].partition(":")[0]] if part.startswith("{") else part for part in path.split("/"))

"""Submit a task to a running Taskyard and follow it to its end.

    python examples/client.py http.request '{"url": "https://example.com/"}'
    python examples/client.py image.thumbnail '{"path": "/srv/images/cat.jpg"}' --priority 9

Needs only httpx2 (`pip install httpx2`). Ends with 0 if the task succeeded, 1 if it did not, 2 if it was not accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from typing import Any

import httpx2

ENDED = {"succeeded", "failed", "cancelled", "expired"}


def main() -> int:
    options = read_options()
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    with httpx2.Client(base_url=f"{options.server.rstrip('/')}/api/v1", headers=headers, timeout=60) as client:
        try:
            task = submit(client, options)
            print(f"{task['id']} is {task['status']}")
            task = follow(client, task)
        except httpx2.HTTPStatusError as error:
            return refused(error.response)
        except httpx2.TransportError as error:
            print(f"{options.server} can't be reached: {error}", file=sys.stderr)
            return 2
    print(json.dumps(task["result"] if task["status"] == "succeeded" else task["error"], indent=2, ensure_ascii=False))
    return 0 if task["status"] == "succeeded" else 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submit a task and follow it to its end.")
    parser.add_argument("type", help="task type, such as http.request")
    parser.add_argument("payload", type=json.loads, help="payload, as JSON")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="address of Taskyard (default: %(default)s)")
    parser.add_argument("--priority", type=int, default=5, help="0 to 9, 9 is the most urgent (default: %(default)s)")
    parser.add_argument("--key", default=os.environ.get("TASKYARD_KEY"), help="API key, where the server asks for one (default: $TASKYARD_KEY)")
    return parser.parse_args()


def submit(client: httpx2.Client, options: argparse.Namespace) -> dict[str, Any]:
    """Hand the task in. Sent once: when no answer arrives, look for the task by its tag before you send it again."""
    tag = f"client-{uuid.uuid4()}"
    body = {"type": options.type, "payload": options.payload, "priority": options.priority, "tags": [tag]}
    response = client.post("/tasks", json=body)
    response.raise_for_status()
    task: dict[str, Any] = response.json()
    return task


def follow(client: httpx2.Client, task: dict[str, Any]) -> dict[str, Any]:
    """Ask for the task until it has ended, and print each change. `Prefer: wait` lets the server answer when there is news."""
    told: tuple[str, Any] = (task["status"], {})
    while task["status"] not in ENDED:
        asked = time.monotonic()
        response = client.get(f"/tasks/{task['id']}", headers={"Prefer": "wait=10"})
        response.raise_for_status()
        task = response.json()
        progress = task.get("progress") or {}
        if told != (task["status"], progress):
            told = (task["status"], progress)
            fraction = progress.get("fraction")
            print(f"{task['status']}", "" if fraction is None else f"{fraction:.0%}", progress.get("message") or "")
        if task["status"] not in ENDED and time.monotonic() - asked < 0.5:
            time.sleep(0.5)  # a server that answers at once is not asked all the time
    return task


def refused(response: httpx2.Response) -> int:
    """Print a problem document (RFC 9457): what is wrong, and where."""
    try:
        problem = response.json()
    except ValueError:
        problem = {"title": f"{response.status_code} {response.reason_phrase}"}
    print(f"{problem.get('title')}: {problem.get('detail', '')}", file=sys.stderr)
    for place in problem.get("errors", []):
        print(f"  {place['pointer']}: {place['detail']}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

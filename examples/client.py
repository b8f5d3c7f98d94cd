"""Submit a task to a running Taskyard and follow it live to its end.

    python examples/client.py http.request '{"url": "https://example.com/"}'
    python examples/client.py image.thumbnail '{"path": "/srv/images/cat.jpg"}' --priority 9

Needs only `pip install taskyard`. Ends with 0 if the task succeeded, 1 if it did not, 2 if it was not accepted.
"""

from __future__ import annotations

import argparse
import json
import sys

from taskyard.client import Client, ClientError, TaskUnsuccessful


def main() -> int:
    options = read_options()
    with Client(options.server, options.key) as client:
        try:
            # Sent again by itself if the connection breaks, and never made twice.
            handle = client.submit(options.type, options.payload, priority=options.priority)
            print(f"{handle.id} is {handle.task.status}")
            for event in handle.follow():
                fraction = event.data.get("fraction")
                print(event.type, "" if fraction is None else f"{fraction:.0%}", event.data.get("message") or "")
            print(json.dumps(handle.result(), indent=2, ensure_ascii=False))
        except TaskUnsuccessful as error:
            print(json.dumps({"code": error.code, "message": error.message}, indent=2, ensure_ascii=False))
            return 1
        except ClientError as error:  # refused, with each place that is wrong; or nobody answers
            print(error, file=sys.stderr)
            return 2
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submit a task and follow it to its end.")
    parser.add_argument("type", help="task type, such as http.request")
    parser.add_argument("payload", type=json.loads, help="payload, as JSON")
    parser.add_argument("--server", help="address of Taskyard (default: $TASKYARD_URL, or http://127.0.0.1:8000)")
    parser.add_argument("--priority", type=int, default=5, help="0 to 9, 9 is the most urgent (default: %(default)s)")
    parser.add_argument("--key", help="API key, where the server asks for one (default: $TASKYARD_KEY)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

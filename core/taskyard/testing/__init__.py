"""What plugin authors test with: run a handler or a notifier with no database and no broker, and check a plugin's shape.

run = run_handler(fetch, {"url": "https://example.com/"})
assert run.status == "succeeded"

def test_the_plugin_conforms() -> None:
    assert_plugin_conforms("pages")
"""

from taskyard.testing.conformance import assert_plugin_conforms, check_plugin
from taskyard.testing.runs import HandlerRun, NotifierRun, make_event, run_handler, run_notifier

__all__ = [
    "HandlerRun",
    "NotifierRun",
    "assert_plugin_conforms",
    "check_plugin",
    "make_event",
    "run_handler",
    "run_notifier",
]

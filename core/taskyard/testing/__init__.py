"""What plugin authors test with: handlers and notifiers with no database and no broker, a whole Taskyard, and a plugin's shape.

run = run_handler(fetch, {"url": "https://example.com/"})
assert run.status == "succeeded"

def test_the_plugin_conforms() -> None:
    assert_plugin_conforms("pages")

def test_a_task_succeeds(taskyard: RunningTaskyard) -> None:  # a fixture, which pytest finds by itself
    assert taskyard.run("pages.fetch", {"url": "https://example.com/"})["status"] == "succeeded"
"""

from taskyard.testing.batches import arun_batch, run_batch
from taskyard.testing.conformance import assert_plugin_conforms, check_plugin
from taskyard.testing.receiver import Answer, Received, Receiver, receiver
from taskyard.testing.recording import LogLine
from taskyard.testing.runs import HandlerRun, NotifierRun, arun_handler, make_event, run_handler, run_notifier
from taskyard.testing.service import CallRefused, NotStarted, RunningTaskyard, running_taskyard

__all__ = [
    "Answer",
    "CallRefused",
    "HandlerRun",
    "LogLine",
    "NotStarted",
    "NotifierRun",
    "Received",
    "Receiver",
    "RunningTaskyard",
    "arun_batch",
    "arun_handler",
    "assert_plugin_conforms",
    "check_plugin",
    "make_event",
    "receiver",
    "run_batch",
    "run_handler",
    "run_notifier",
    "running_taskyard",
]

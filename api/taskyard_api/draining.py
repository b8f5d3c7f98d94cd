"""The way a web process stops: not ready first, then closed to new connections, then gone."""

from __future__ import annotations


class Draining:
    """Has this process been told to stop? Then ``/health/ready`` answers 503, so that load balancers send nothing more, and each answer asks for
    a new connection (``Connection: close``), so that no proxy reuses one that is about to end. All is still served.
    """

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        """Told to stop. Safe in a signal handler."""
        self.begun = True

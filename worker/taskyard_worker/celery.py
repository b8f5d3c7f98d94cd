"""What ``celery -A taskyard_worker`` finds: the app, made from the environment's settings."""

import os
import sys

# Celery puts the current folder in front of the path: a file there must not pass for a module that is imported from here on.
if sys.path[:1] == [os.getcwd()]:  # noqa: PTH109  # as Celery writes it
    del sys.path[0]

from taskyard.settings import load_settings
from taskyard_worker.app import create_app

app = create_app(load_settings())

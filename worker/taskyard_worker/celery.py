"""What ``celery -A taskyard_worker`` finds: the app, made from the environment's settings."""

from taskyard.settings import load_settings
from taskyard_worker.app import create_app

app = create_app(load_settings())

"""Taskyard's schema and its history, for Alembic. Rides in the wheel, so `taskyard db` works wherever Taskyard is installed."""

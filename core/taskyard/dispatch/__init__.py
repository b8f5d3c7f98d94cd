"""From the line in Postgres to a short window in the broker: the Celery app, the publisher and the dispatcher's loop."""

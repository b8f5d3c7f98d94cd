"""The Celery worker: claims tasks, runs handlers in processes of their own, and records how they ended.

Three kinds of processes: Celery's own, which consumes messages and holds the engine (no plugin code runs in it); the zygote,
which has imported every plugin and does nothing but fork; and its children, where handlers run: one for each sync handler at
a time, and one event loop for all async ones.
"""

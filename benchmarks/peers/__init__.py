"""The peers' sides of the benchmarks. They run in an environment of their own, .venv-bench, so nothing here imports Taskyard."""

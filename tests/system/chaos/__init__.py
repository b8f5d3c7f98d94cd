"""`make chaos`: the real roles under load and faults, and a count of everything afterwards. See docs/guarantees.md."""

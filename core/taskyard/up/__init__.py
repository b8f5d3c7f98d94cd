"""`taskyard up`: the whole of Taskyard on one machine, as children of one process."""

"""Takes snapshots of a probe while a network trains, and writes them: knows no Lightning."""

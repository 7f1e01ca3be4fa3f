"""The evaluations that a run folder holds: how they are read, what their names mean, which may be compared."""

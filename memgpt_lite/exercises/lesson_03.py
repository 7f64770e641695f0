"""The exercises of notebook 03."""

EXERCISES = []

"""Anything that yields a dataset: GLUE, the user's own tables, and generated tasks."""

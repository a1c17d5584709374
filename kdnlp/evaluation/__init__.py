"""Task metrics, and the report of what a compression cost and gained."""

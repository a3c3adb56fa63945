"""The report: one page that shows a run, and a summary of it for pull requests."""

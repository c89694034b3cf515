"""The worklist page and its JSON, read only."""

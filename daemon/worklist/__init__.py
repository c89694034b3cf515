"""The worklist: what the command line, the JSON and the page say of a study, worked out once."""

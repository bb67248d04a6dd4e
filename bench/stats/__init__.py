"""Statistics: paired effects, exact intervals, verdicts. Numbers in, numbers out, no files."""

"""What on a host stops a run or distorts its figures: traps read from files, and tries."""

"""What each command of the command line does; `bench.cli` parses and dispatches."""

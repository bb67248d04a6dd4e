"""The agent: PID 1 of every instance, its frame protocol and the host's end of it."""

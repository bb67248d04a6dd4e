"""Other people's launchers as backends: the same image, agent, clock and accounting as our arms."""

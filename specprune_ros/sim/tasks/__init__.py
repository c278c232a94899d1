"""The tasks of the simulated arm: instructions, expert, success."""

"""The training pipeline: its tasks, where they run, and the commands that compile, run, submit and schedule it."""

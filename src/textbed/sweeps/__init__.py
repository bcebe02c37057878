"""Sweeps: an Optuna study in a journal file, workers that take trials from it, a process for each trial."""

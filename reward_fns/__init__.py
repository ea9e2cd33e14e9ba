"""Reward functions, one file for each framework; they import `grading` and `sample`, and no framework."""

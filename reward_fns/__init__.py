"""Reward functions, one file for each framework; they import `tpru_verl.grading` and no framework."""

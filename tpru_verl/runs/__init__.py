"""A run afterwards and from outside: its logs read, alarms, report."""

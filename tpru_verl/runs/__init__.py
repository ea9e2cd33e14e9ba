"""A run afterwards and from outside: its logs read, its alarms, its report, its model."""

"""Data sets: fetched, checked, written as the files that the service imports."""

"""The `hone` command."""

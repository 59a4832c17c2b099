"""Quality of candidate sources on public data, beside published numbers."""

"""Benchmarks: run now, print, save JSON with the machine and the commit."""

"""HTTP: handlers, problems, static pages."""

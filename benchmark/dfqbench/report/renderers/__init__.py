"""Renderers: tables, comparisons and published numbers as text, Markdown, LaTeX, HTML, CSV and JSON."""

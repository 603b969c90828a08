"""Forms: one page as text, Markdown, LaTeX or HTML."""

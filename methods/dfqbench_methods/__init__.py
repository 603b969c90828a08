"""The built-in methods, one folder each; they come in through the same entry points as a stranger's."""

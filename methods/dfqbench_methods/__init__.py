"""The built-in methods, one folder each, found through the same entry points as third-party ones."""

"""An example of everything that a plugin can offer."""

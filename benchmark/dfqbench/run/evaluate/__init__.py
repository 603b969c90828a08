"""Accuracy of networks on evaluation sets, in a process of its own."""

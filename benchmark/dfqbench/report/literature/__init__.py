"""What papers print: accuracies and times with their sources, and verdicts on measurements."""

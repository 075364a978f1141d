"""What a verdict advises for each case of the corpus, applied to the case's own code."""

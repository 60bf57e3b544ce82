"""Feature extractors: from structures to one feature vector per atom."""

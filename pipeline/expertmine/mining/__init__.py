"""The stages plan, extract, score, assess and reduce, and `mine`, which drives them in a row."""

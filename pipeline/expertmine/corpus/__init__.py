"""Unique sentences, concepts and labels: drafts, the writer, the reader, and what is drawn or held out."""

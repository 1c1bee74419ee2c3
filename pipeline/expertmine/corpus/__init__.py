"""Unique sentences, concepts and labels: drafts, writer, reader, random samples and the held-out split."""

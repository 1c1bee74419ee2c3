"""A run folder: plan file, receipts, store, lease, inspection and costs. Knows no stage."""

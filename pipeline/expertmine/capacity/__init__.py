"""What a job would take on given hardware."""

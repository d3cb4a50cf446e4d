"""What an operator sees of a running router: logs, and (in metrics) numbers."""

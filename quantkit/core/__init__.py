"""What everything stands on: errors, files, locks, receipts, units, progress, threads, paths."""

"""What a download decides and keeps: wanted files, hashes, its record in a folder, disk space."""

"""Which files a download wants, hashes, and the record that it keeps in the folder."""

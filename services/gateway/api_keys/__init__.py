"""Keys for programs: named, scoped, expiring, shown once, stored as hashes; they act as their user and no further."""

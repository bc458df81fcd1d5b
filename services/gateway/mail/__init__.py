"""Mail to people: written with the change it tells of, handed to SMTP afterwards, never lost and never in the way."""

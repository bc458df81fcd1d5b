"""What the service role may do with accounts: make, invite, change, ban and delete them, and make links for them."""

"""What admins may do through the gateway; every act leaves an audit row."""

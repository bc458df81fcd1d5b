"""What operators do when numbers must be put right: every act is a booking, none edits what was booked."""

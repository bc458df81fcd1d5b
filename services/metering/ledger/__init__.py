"""What was used, for ever: facts are booked once by their name, and every counter is the sum of its bookings."""

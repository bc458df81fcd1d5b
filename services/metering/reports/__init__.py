"""What was used, told to users and operators: now, over time, in money, and who stands near a limit."""

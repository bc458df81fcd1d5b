"""What admins see and change of users; every change is audited with what was before and after."""

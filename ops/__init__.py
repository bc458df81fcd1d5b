"""What operators and developers run: the stack, its engines, and the command line."""

"""One-time codes and links: who holds the mailbox proves it once, within a few guesses and a short time."""

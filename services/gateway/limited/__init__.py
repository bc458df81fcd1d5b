"""Who was limited, by what and where: counted by the hour, for operators to read."""

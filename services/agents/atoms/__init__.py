"""Curating prompt atoms: what admins see of them and change, every change a version that stays on record."""

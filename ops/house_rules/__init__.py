"""The house rules no other tool checks, as small checks over syntax trees: `python -m ops.house_rules`."""

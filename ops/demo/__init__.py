"""The product's journey as a person would live it, on the running stack: `python -m ops.demo`."""

"""What tests stand on: real servers, a database per test, services run in process, and patience instead of sleep."""

"""What is decided without asking the system: no os, no clock, no pytest, and nothing outside this package."""
